"""Losses as plans count them: a wider format of the same blocks never loses more than a narrower one.

It cannot, but for the error of what was measured or estimated. Where it seems to, both get their mean, weighted by the
errors: the least-squares estimate under that order (pool adjacent violators). Such formats are equal to a plan, and
noise is no reason to take the narrower one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qplan.formats import QuantFormat


@dataclass
class _Pool:
    """Formats next to each other in width that have one loss."""

    names: list[str]
    loss: float
    weight: float


def ordered_losses(
    losses: Mapping[str, float], stderrs: Mapping[str, float], *, exact_floats: bool = True
) -> dict[str, float]:
    """Losses of one tensor by format name, in the same order, none of them larger than a narrower format's.

    Formats are compared if they have the same blocks, symmetry and scales; floats with all.

    Args:
        losses: as they were measured or estimated.
        stderrs: their standard errors; 0 where none is known.
        exact_floats: whether float weights are computed with floats that lose nothing, so that no integers are better.
            Products that add up in fp16 may lose more than int8 activations.
    """
    found = dict(losses)
    formats = {name: QuantFormat.parse(name) for name in losses}
    chains: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(losses, key=lambda name: formats[name].bits):
        fmt = formats[name]
        if not fmt.is_float:
            chains.setdefault((fmt.block, fmt.symmetric, fmt.scale_bits), []).append(name)
    for chain in chains.values():
        known = all(stderrs.get(name, 0.0) > 0 for name in chain)
        weights = [1 / stderrs[name] ** 2 if known else 1.0 for name in chain]
        found |= _pooled(chain, losses, weights)
    floats = [name for name, fmt in formats.items() if fmt.is_float and exact_floats]
    least = min((found[name] for chain in chains.values() for name in chain), default=math.inf)
    return found | {name: min(found[name], least) for name in floats}


def _pooled(names: Sequence[str], losses: Mapping[str, float], weights: Sequence[float]) -> dict[str, float]:
    """Losses of formats in order of their width, widest last."""
    pools: list[_Pool] = []
    for name, weight in zip(names, weights, strict=True):
        pools.append(_Pool([name], losses[name], weight))
        while len(pools) > 1 and pools[-1].loss > pools[-2].loss:
            wider, narrower = pools.pop(), pools.pop()
            total = narrower.weight + wider.weight
            mean = (narrower.loss * narrower.weight + wider.loss * wider.weight) / total
            pools.append(_Pool(narrower.names + wider.names, mean, total))
    return {name: pool.loss for pool in pools for name in pool.names}
