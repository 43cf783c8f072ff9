"""What each shape of tensor takes in each format, from times of whole models that differ in one thing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qplan.formats import QuantFormat

Shape = tuple[int, int]


def changes_of_shapes(
    classes: Mapping[Shape, Sequence[QuantFormat]], counts: Mapping[Shape, int], times: Mapping[str, Sequence[float]]
) -> tuple[float, dict[tuple[Shape, QuantFormat], float]]:
    """The time of the base model, and what each shape adds in each format.

    Measured times are shrunk towards a common time per weight, depending on the noise. On an idle machine they stay as
    measured. If rounds differ as much as shapes do, all shapes of a format get the time per weight that fits them and
    the uniform model best (James and Stein, "Estimation with quadratic loss", 1961).
    """
    # the median, since one disturbed model says nothing about the others
    noise = float(np.median([_noise(rounds) for rounds in times.values()]))
    zero = _level(classes, counts, times, noise)
    found: dict[tuple[Shape, QuantFormat], float] = {}
    for fmt in _formats(classes):
        shapes = [shape for shape, formats in classes.items() if fmt in formats]
        weights = np.array([counts[shape] * math.prod(shape) for shape in shapes], dtype=np.float64)
        single = np.array([min(times[f"{shape} {fmt}"]) - zero for shape in shapes])
        whole = min(times[f"uniform {fmt}"]) - zero
        design, seen = np.append(weights, weights.sum()), np.append(single, whole)
        line = weights * float(design @ seen / (design @ design))
        off = single - line
        kept = _trusted(off, noise)
        changes = line + kept * off
        # single changes need not add up to the uniform model; the rest is distributed in proportion to weights
        changes += kept * (whole - changes.sum()) * weights / weights.sum()
        found |= {(shape, fmt): float(change) for shape, change in zip(shapes, changes, strict=True)}
    return zero, found


def changes_by_weights(
    classes: Mapping[Shape, Sequence[QuantFormat]],
    counts: Mapping[Shape, int],
    base: QuantFormat,
    times: Mapping[QuantFormat, float],
) -> dict[tuple[Shape, QuantFormat], float]:
    """What each shape adds in each format beyond the base, where only uniform models were timed: so much per weight.

    Args:
        classes: formats by shape, without the base.
        counts: tensors of each shape.
        base: format of the model that the others are compared with.
        times: of the uniform models, by format.
    """
    found: dict[tuple[Shape, QuantFormat], float] = {}
    for fmt in _formats(classes):
        weights = {s: counts[s] * math.prod(s) for s, formats in classes.items() if fmt in formats}
        change = (times[fmt] - times[base]) / sum(weights.values())
        found |= {(shape, fmt): count * change for shape, count in weights.items()}
    return found


def _level(
    classes: Mapping[Shape, Sequence[QuantFormat]],
    counts: Mapping[Shape, int],
    times: Mapping[str, Sequence[float]],
    noise: float,
) -> float:
    """Time of the base model: its own minimum, shrunk towards a fit of all models with a time per weight and format.

    All changes are relative to it, so noise in this one model must not shift them all.
    """
    formats = _formats(classes)
    rows = [[1.0, *(0.0 for _ in formats)]]
    seen = [min(times["base"])]
    for column, fmt in enumerate(formats):
        shapes = [shape for shape, found in classes.items() if fmt in found]
        sizes = {shape: float(counts[shape] * math.prod(shape)) for shape in shapes}
        for label, size in [*((f"{s} {fmt}", w) for s, w in sizes.items()), (f"uniform {fmt}", sum(sizes.values()))]:
            rows.append([1.0, *(size if column == other else 0.0 for other in range(len(formats)))])
            seen.append(min(times[label]))
    level = float(np.linalg.lstsq(np.array(rows), np.array(seen), rcond=None)[0][0])
    return level + _trusted(np.array([seen[0] - level]), noise) * (seen[0] - level)


def _formats(classes: Mapping[Shape, Sequence[QuantFormat]]) -> list[QuantFormat]:
    return list(dict.fromkeys(fmt for formats in classes.values() for fmt in formats))


def _trusted(off: NDArray[np.float64], noise: float) -> float:
    """Fraction of deviations that exceeds noise, 0 to 1; both sides of a difference are noisy."""
    return max(0.0, 1 - len(off) * 2 * noise / float(off @ off)) if off.any() else 0.0


def _noise(rounds: Sequence[float]) -> float:
    """Variance of a minimum over rounds, from its distance to the second best; 0 for a single round."""
    ordered = sorted(rounds)
    return (ordered[1] - ordered[0]) ** 2 if len(ordered) > 1 else 0.0
