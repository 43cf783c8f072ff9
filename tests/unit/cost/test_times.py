"""What times of whole models say about their ops."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.cost.times import changes_by_weights, changes_of_shapes
from qplan.formats import QuantFormat


def test_noisy_times_are_pulled_towards_the_time_per_weight() -> None:
    formats = [QuantFormat(4)]
    shapes = {(100, 10): 2, (50, 10): 4, (300, 10): 1}
    classes = dict.fromkeys(shapes, formats)
    true = {(100, 10): -2.0, (50, 10): -2.0, (300, 10): -1.5}

    def times(jitter: float) -> dict[str, list[float]]:
        noise = np.random.default_rng(3)
        rows = {f"{shape} int4": 10 + change for shape, change in true.items()}
        rows |= {"base": 10.0, "uniform int4": 10 + sum(true.values())}
        return {label: [value + jitter * noise.exponential() for _ in range(3)] for label, value in rows.items()}

    level, exact = changes_of_shapes(classes, shapes, times(0.0))
    assert {shape: exact[shape, formats[0]] for shape in shapes} == pytest.approx(true)
    assert level == pytest.approx(10.0)
    _, noisy = changes_of_shapes(classes, shapes, times(1.5))
    per_weight = [noisy[shape, formats[0]] / (count * shape[0] * shape[1]) for shape, count in shapes.items()]
    assert max(per_weight) - min(per_weight) == pytest.approx(0.0, abs=1e-12)


def test_uniform_models_alone_give_a_time_per_weight() -> None:
    int8, int4, fp16 = (QuantFormat.parse(name) for name in ("int8", "int4", "fp16"))
    classes = {(8, 4): [int4, fp16], (2, 4): [int4]}
    found = changes_by_weights(classes, {(8, 4): 3, (2, 4): 12}, int8, {int8: 10.0, int4: 4.0, fp16: 34.0})
    assert found == {((8, 4), int4): -3.0, ((2, 4), int4): -3.0, ((8, 4), fp16): 24.0}
