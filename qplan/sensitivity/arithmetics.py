"""What activations of one tensor lose under each arithmetic: one more rounding of its inputs for every formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.rounding import Int8Activations
from qplan.sensitivity.half_arithmetic import half_values
from qplan.sensitivity.half_products import accumulate_half
from qplan.sensitivity.seen import Seen

FORMULAS: Mapping[str, Int8Activations] = MappingProxyType(
    {
        "token_nats": Int8Activations("prefill", 0),
        "block_nats": Int8Activations("prefill", 2),
        "arm_block_nats": Int8Activations("prefill", 2, "arm"),
    }
)
"""Int8 activations whose losses differ, by the column of the table that holds them. ARM rounds ties otherwise than x86
and computes codes in fp16 under precision low: neither changes a loss beyond its error (reports/targets)."""

HALF_TOKENS = 256
"""Most tokens that products are added up in fp16 for: their errors are independent, and they are slow to emulate."""


def formulas_of(fmt: QuantFormat) -> dict[str, tuple[Int8Activations, int]]:
    """For a format of integers, the formulas that the engine does not garble it under, with the block of each."""
    return {
        name: (formula, formula.block(fmt))
        for name, formula in FORMULAS.items()
        if formula.dynamic_option == 0 or fmt.allows_block_activations
    }


def int8_squares(
    group: Sequence[Seen], activations: Int8Activations, block: int, factor: Tensor
) -> list[tuple[Tensor, float]]:
    """Of each tensor, squares ``[rows]`` from int8 activations, and the output noise they make.

    Args:
        group: tensors with the same input.
        activations: how it is rounded.
        block: see `Int8Activations.block`.
        factor: ``[in]``, what inputs are divided by.
    """
    inputs = group[0].inputs / factor
    # the errors as they are without the factor
    error = activations.round(inputs, block, routed=group[0].routed).sub_(inputs).mul_(factor)
    return [
        (
            torch.linalg.vecdot(seen.slopes, error).square().sum(-1).to("cpu", torch.float64),
            _noise(seen, error.flatten(0, -2)),
        )
        for seen in group
    ]


def _noise(seen: Seen, error: Tensor) -> float:
    """Squares of the output's error that an error ``[tokens, in]`` of the input makes.

    Of independent errors of input features they would be known of all output features. But features that round to zero
    err by all that they are, and these errors are alike: at the output features that are drawn, they are found exactly.
    """
    energy = error.square().sum(0)
    exact = (error @ seen.weight.T).square_().sum(0)
    independent = seen.weight.square() @ energy
    found, beside = (part.to("cpu", torch.float64) for part in (exact, independent))
    return seen.sample.total_like(found, beside, float(seen.columns @ energy))


def half_squares(group: Sequence[Seen], factor: Tensor) -> list[Tensor]:
    """Of each tensor, squares ``[rows]`` from adding up products of float weights in fp16.

    Errors of tokens and of output features are independent, so squares are added up. Of `HALF_TOKENS` tokens, spread
    evenly over the sequences' real ones, and brought to all of them.
    """
    inputs = group[0].inputs
    real = inputs.any(-1).flatten().nonzero().squeeze(1)
    if not len(real):
        return [torch.zeros(len(inputs), dtype=torch.float64) for _ in group]
    few = real[torch.arange(min(len(real), HALF_TOKENS), device=real.device) * len(real) // min(len(real), HALF_TOKENS)]
    rows = half_values(inputs.flatten(0, -2)[few] / factor)
    weights = half_values(torch.cat([seen.weight for seen in group]) * factor)
    errors = accumulate_half(rows, weights).sub_(rows @ weights.T)
    found = []
    for seen, error in zip(group, errors.split([len(seen.weight) for seen in group], 1), strict=True):
        along = (seen.gradients.flatten(0, -2)[few] * error).square().sum(0).to("cpu", torch.float64)
        total, _ = seen.sample.sum(along)
        mean = total * (len(real) / len(few) / len(inputs))
        found.append(mean.expand(len(inputs)))
    return found
