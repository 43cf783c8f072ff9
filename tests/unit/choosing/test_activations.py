"""When activations get a scale per block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qplan.choosing.activations import (
    LEAST_GAIN,
    MOST_SLOWDOWN,
    BlockGain,
    measure_gain,
    with_measured_option,
    with_requested_option,
    without_block_scales,
)
from qplan.choosing.option import with_note_on_losses
from qplan.choosing.retarget import computable
from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InputError
from qplan.formats import FP16, INT4, INT8, QuantFormat, applies, garbled
from qplan.model.load import LoadedModel
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.rounding import Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.run.plan import Plan
from qplan.sensitivity.joint import Variant, joint_losses
from qplan.sensitivity.metrics import TokenStats
from tests.support.invented_table import make_table


@pytest.fixture
def plan() -> Plan:
    table = make_table()
    return make_plan(table, Budget.parse("int8"), estimate_fixed(table.model))


GAIN = BlockGain(prefill=0.3, decode=0.7)


@pytest.mark.parametrize(
    ("gain", "speed", "option", "said"),
    [
        (GAIN, 0.96, 2, "0.30 times the loss in prefill and 0.70 in decode .* 0.96 times the decode speed"),
        (GAIN, 1 - MOST_SLOWDOWN, 2, ": used"),
        (GAIN, 1 - MOST_SLOWDOWN - 0.01, 0, "too slow"),
        (GAIN, None, 0, "not known until the model is built"),
        (BlockGain(0.3, 1 - LEAST_GAIN + 0.01), 1.0, 0, "saves 10% in both"),
        (BlockGain(1 - LEAST_GAIN + 0.01, 0.3), None, 0, "saves 10% in both"),
    ],
)
def test_a_scale_per_block_is_taken_where_it_pays(
    plan: Plan, gain: BlockGain, speed: float | None, option: int, said: str
) -> None:
    found = with_measured_option(plan, gain, speed)
    assert found.dynamic_option == option
    assert found.formats == plan.formats
    assert re.search(said, str(found.notes[-1]))


def test_what_is_asked_for_is_done(plan: Plan) -> None:
    found = with_requested_option(plan, BlockGain(1.2, 1.3))
    assert found.dynamic_option == 2
    assert "1.20 times the loss" in str(found.notes[-1])


def test_losses_of_another_option_are_told(plan: Plan) -> None:
    table, before = make_table(), replace(plan, arithmetic=None)
    other = replace(table, conditions=replace(table.conditions, dynamic_option=2))
    assert with_note_on_losses(before, table) == before
    assert with_note_on_losses(plan, other) == plan  # made from what the option loses
    assert "are those of dynamic_option 2" in str(with_note_on_losses(before, other).notes[-1])


def test_garbled_formats_keep_a_scale_per_token(plan: Plan) -> None:
    tensors = tuple(replace(t, format=QuantFormat(4, 4)) for t in plan.tensors)
    odd = replace(plan, tensors=tensors)
    names = garbled(odd.formats)
    assert names == [t.name for t in tensors]
    found = without_block_scales(odd, names)
    assert found.dynamic_option == 0
    assert f"int4-b4 under 2 ({names[0]}" in str(found.notes[-1])
    assert garbled(plan.formats) == []


def test_the_option_matters_where_integers_meet_memory_low() -> None:
    assert applies("low", {"a": FP16, "b": INT4})
    assert not applies("low", {"a": FP16})
    assert not applies("normal", {"a": INT4})


def test_a_table_without_what_is_garbled() -> None:
    table = make_table()
    odd = [replace(m, format="int4-b4") for m in table.measurements if m.format == "int4"]
    both = replace(table, measurements=(*table.measurements, *odd))
    assert computable(both).measurements == table.measurements
    bare = replace(table, measurements=tuple(replace(m, format="int8-b4") for m in table.measurements))
    with pytest.raises(
        InputError, match=rf"none of the measured formats of {min(s.name for s in table.model.tensors)}"
    ):
        computable(bare)


def test_the_gain_is_that_of_joint_losses(qwen2: LoadedModel, plan: Plan) -> None:
    formats = {spec.name: INT8.resolve(spec.in_features) for spec in qwen2.card.tensors}
    rows = tuple(
        replace(plan.tensors[0], name=name, format=fmt, kind=name.rsplit(".", 1)[-1]) for name, fmt in formats.items()
    )
    tokens = torch.arange(24).view(2, 12)
    gain = measure_gain(replace(plan, tensors=rows), Rounder(qwen2), tokens.numpy())
    for path in ("prefill", "decode"):
        token, block = (
            joint_losses(qwen2, tokens, {"": formats}, "low", Int8Activations(path, option))[""].kl_nats
            for option in (0, 2)
        )
        assert getattr(gain, path) == pytest.approx(block / token)


def test_a_doubt_is_settled_by_rows_that_were_not_measured_yet(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def losses(_loaded: Any, tokens: Tensor, variants: Mapping[str, Variant], **_: Any) -> dict[str, TokenStats]:
        measured.extend(tokens[:, 0].tolist())
        # just at the least gain: never beyond doubt
        return {
            label: TokenStats(
                torch.full((len(tokens),), 0.9 if label.endswith("2") else 1.0), tokens[:, 0] > 0, tokens[:, 0]
            )
            for label in variants
        }

    monkeypatch.setattr("qplan.choosing.activations.variant_losses", losses)
    rows = np.arange(11).repeat(256).reshape(11, 256)
    rounder: Any = SimpleNamespace(loaded=None)
    gain = measure_gain(plan, rounder, rows)
    assert (gain.prefill, gain.decode) == pytest.approx((0.9, 0.9))
    assert sorted(measured) == list(range(11))
