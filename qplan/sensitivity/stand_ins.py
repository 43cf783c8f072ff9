"""Whole plans, measured before anything is rounded whole: how the losses of single tensors add up.

Rounding to nearest takes next to no time, and a better rounding mostly makes smaller errors. So a tensor that is
rounded better is stood in for by its weights rounded to nearest, with the error brought to the size that the sampled
output features had. What then is measured is how losses of this size add up, not what one rounding loses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qplan.formats import Formats, QuantFormat
from qplan.model.layerwise import run_layer
from qplan.model.load import LoadedModel
from qplan.quantize import rtn
from qplan.quantize.moments import Moments
from qplan.quantize.rounder import Rounder
from qplan.roundings import needs_tokens
from qplan.sensitivity.analysis import Analysis
from qplan.sensitivity.metrics import TokenStats, compare, join, reference_of
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats


@dataclass
class StandIns(StoredWeights):
    """Weights that stand in for stored ones, made when they are asked for."""

    noise: Mapping[tuple[str, QuantFormat], float] | None = None
    """Squares of the output's error over those of the output, by tensor and format; None to take the weights as they
    are rounded."""
    moments: Moments | None = None
    """Of the inputs that `noise` is about."""

    def get(self, name: str, fmt: QuantFormat) -> Tensor:
        """float32 ``[out_features, in_features]``."""
        weight = self.loaded.weight(name).float()
        if fmt.is_float or self.noise is None or self.moments is None or not self.moments.tokens[name]:
            return (self.rounder or Rounder(self.loaded)).store(name, fmt).dequantize().to(weight.device)
        error = rtn(weight, fmt).dequantize().to(weight.device) - weight
        seen = self.moments.of(name).to(weight.device)
        ours, signal = (float(((part @ seen) * part).sum()) for part in (error, weight))
        return weight + error * math.sqrt(self.noise[name, fmt] * signal / ours) if ours > 0 else weight


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
    found: list[list[TokenStats]] = [[] for _ in plans]
    given: list[list[Any]] = [[None] * len(batches) for _ in (None, *plans)]
    for index in range(layers + 1):
        names = [spec.name for spec in loaded.card.tensors if _is_in(loaded, spec.name, index)]
        references = [run_layer(loaded, index, batch, state) for batch, state in zip(batches, given[0], strict=True)]
        for plan, formats in enumerate(plans):
            here = {name: formats[name] for name in names}
            with apply_formats(loaded, here, analysis.conditions.memory, analysis.activations, stored=stored):
                for number, batch in enumerate(batches):
                    output = run_layer(loaded, index, batch, given[1 + plan][number])
                    if index < layers:
                        given[1 + plan][number] = output
                    else:
                        found[plan].append(compare(reference_of(references[number], batch), output))
        given[0] = references
    return [join(stats).kl_nats for stats in found]


def _is_in(loaded: LoadedModel, name: str, index: int) -> bool:
    """Whether a layer computes with a tensor, or looks tokens up in it; the number of layers stands for the head."""
    spec = loaded.card.tensor(name)
    return spec.layer == index or (spec.layer is None and (index == len(loaded.layers) or (spec.tied and index == 0)))
