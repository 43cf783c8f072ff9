"""Whole plans, measured before anything is rounded whole: how the losses of single tensors add up.

Rounding to nearest takes next to no time, and a better rounding mostly makes smaller errors. So a tensor that is
rounded better is stood in for by its weights rounded to nearest, with the error brought to the size that the sampled
output features had. What then is measured is how losses of this size add up, not what one rounding loses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qplan.formats import Formats, QuantFormat
from qplan.model.layerwise import hidden_of, run_layer
from qplan.rounding import rtn
from qplan.rounding.moments import Moments
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored import row_pieces
from qplan.roundings import needs_tokens
from qplan.sensitivity.analysis import Analysis
from qplan.sensitivity.joint import formats_of_layer
from qplan.sensitivity.metrics import compare, join, reference_of
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats

_POWER_ROWS = 128
"""Output features, evenly spaced, that say how large the error of a rounding to nearest is beside the output."""


@dataclass
class StandIns(StoredWeights):
    """Weights that stand in for stored ones, made when they are asked for."""

    noise: Mapping[tuple[str, QuantFormat], float] | None = None
    """Squares of the output's error over those of the output, by tensor and format; None to take the weights as they
    are rounded."""
    moments: Moments | None = None
    """Of the inputs that `noise` is about."""
    _last: tuple[str, QuantFormat, Tensor] | None = None
    """What was asked for last, since sequences follow each other."""
    _factors: dict[tuple[str, QuantFormat], float] = field(default_factory=dict)
    _signals: dict[str, float] = field(default_factory=dict)
    """Squares of the output, of some features, by tensor."""

    def get(self, name: str, fmt: QuantFormat) -> Tensor:
        """float32 ``[out_features, in_features]``."""
        if self._as_rounded(name, fmt):
            return (self.rounder or Rounder(self.loaded)).store(name, fmt).dequantize().to(self.loaded.device)
        if self._last is not None and self._last[:2] == (name, fmt):
            return self._last[2]
        self._last = None  # it is as large as the next one
        spec = self.loaded.card.tensor(name)
        found = torch.empty(spec.out_features, spec.in_features, device=self.loaded.device)
        for rows, part in self._pieces(name, fmt):
            found[rows] = part
        self._last = name, fmt, found
        return found

    def look_up(self, name: str, fmt: QuantFormat, exact: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        """Rows ``[*ids, in_features]`` of `get`, and no others."""
        if self._as_rounded(name, fmt):
            return super().look_up(name, fmt, exact, ids)
        wanted, places = ids.unique(return_inverse=True)
        rows = exact(wanted)
        return rows.add(_error(rows, fmt), alpha=self._factor(name, fmt))[places]

    def pieces(self, name: str, fmt: QuantFormat) -> Iterator[tuple[slice, Tensor]]:
        """`get` a few rows at a time, where the matrix is large."""
        here = self._as_rounded(name, fmt) or self._fits(name, fmt)
        yield from super().pieces(name, fmt) if here else self._pieces(name, fmt)

    def _as_rounded(self, name: str, fmt: QuantFormat) -> bool:
        if fmt.is_float or self.noise is None or self.moments is None:
            return True
        return self.loaded.card.tensor(name).is_embedding or not self.moments.tokens[name]

    def _pieces(self, name: str, fmt: QuantFormat) -> Iterator[tuple[slice, Tensor]]:
        spec, factor = self.loaded.card.tensor(name), self._factor(name, fmt)
        for rows in row_pieces(spec.out_features, spec.in_features):
            weight = self.loaded.weight(name, rows).float()
            yield rows, weight.add(_error(weight, fmt), alpha=factor)

    def _factor(self, name: str, fmt: QuantFormat) -> float:
        """What the error of rounding to nearest is multiplied by."""
        if self.noise is None or self.moments is None:
            return 1.0
        if (name, fmt) not in self._factors:
            features = self.loaded.card.tensor(name).out_features
            places = torch.arange(0, features, max(1, features // _POWER_ROWS), device=self.loaded.device)
            some, seen = self.loaded.weight_rows(name, places).float(), self.moments.of(name).to(places.device)
            if name not in self._signals:
                self._signals[name] = _power(some, seen)
            ours = _power(_error(some, fmt), seen)
            self._factors[name, fmt] = (
                math.sqrt(self.noise[name, fmt] * self._signals[name] / ours) if ours > 0 else 0.0
            )
        return self._factors[name, fmt]


def _power(rows: Tensor, moments: Tensor) -> float:
    return float(((rows @ moments) * rows).sum())


def _error(weight: Tensor, fmt: QuantFormat) -> Tensor:
    return rtn(weight, fmt).dequantize().to(weight.device).sub_(weight)


def stand_ins_of(analysis: Analysis, rounder: Rounder) -> StandIns:
    """Stand-ins for the integers that a run would choose, from the output errors that its estimates are about."""
    if not needs_tokens(rounder.rounding):
        return StandIns(analysis.loaded, rounder, limit_bytes=0)
    noise = {}
    for name, fmt, memory in analysis.entries():
        if memory == "normal":
            row = analysis.rows((name, fmt.name, memory), "gradient")[0]
            noise[name, fmt] = 10 ** (-row.sqnr_db / 10)
    return StandIns(analysis.loaded, noise=noise, moments=rounder.judge)


def stand_in_losses(
    analysis: Analysis, plans: Sequence[Formats], batches: Sequence[Tensor], stored: StoredWeights
) -> list[float]:
    """Mean KL per token in nats of whole plans, one layer of the model at a time.

    Args:
        analysis: the model and its memory setting.
        plans: formats by tensor name.
        batches: token ids, int64 ``[rows, seq_len]`` each.
        stored: the weights.

    Raises:
        MeasurementError: a loss is not finite.
    """
    loaded, layers = analysis.loaded, len(analysis.loaded.layers)
    given: list[list[Any]] = [[None] * len(batches) for _ in (None, *plans)]
    for index in range(layers):
        references = [run_layer(loaded, index, batch, state) for batch, state in zip(batches, given[0], strict=True)]
        for plan, formats in enumerate(plans, 1):
            with _with_formats(analysis, index, formats, stored):
                given[plan] = [run_layer(loaded, index, *item) for item in zip(batches, given[plan], strict=True)]
        given[0] = references
    # what a softmax of logits takes is large: of one sequence at a time
    ends = [[row for state in states for row in _rows(state)] for states in given]
    rows = [row for batch in batches for row in batch.split(1)]
    references = [
        reference_of(run_layer(loaded, layers, row, state), row) for row, state in zip(rows, ends[0], strict=True)
    ]
    found = []
    for formats, states in zip(plans, ends[1:], strict=True):
        with _with_formats(analysis, layers, formats, stored):
            stats = [
                compare(reference, run_layer(loaded, layers, row, state))
                for reference, row, state in zip(references, rows, states, strict=True)
            ]
        found.append(join(stats).kl_nats)
    return found


def _with_formats(
    analysis: Analysis, index: int, formats: Formats, stored: StoredWeights
) -> AbstractContextManager[None]:
    """Make one layer, or the head, compute as a plan has it."""
    loaded, here = analysis.loaded, formats_of_layer(analysis.loaded, formats, index)
    return apply_formats(loaded, here, analysis.conditions.memory, analysis.activations, stored=stored)


def _rows(state: Any) -> Iterator[Any]:  # noqa: ANN401 - layers differ in what they return
    """The sequences of a batch, of what a layer returned."""
    for row in hidden_of(state).split(1):
        yield row if isinstance(state, Tensor) else (row, *state[1:])
