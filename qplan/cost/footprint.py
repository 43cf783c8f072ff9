"""What a model takes of the hardware that it runs on, predicted without running it: RAM, and times that compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qplan.card import ModelCard
from qplan.cost.target import Target
from qplan.formats import QuantFormat
from qplan.tensors import Role, TensorSpec

PROMPT_TOKENS = 128
"""Tokens of the prefill that relative times are for: the head computes the last one's logits only."""


@dataclass(frozen=True)
class Footprint:
    """Of all planned tensors together. Times have no unit: only those of two models on one target can be compared."""

    ram_bytes: int
    """RAM of the weights after loading."""
    decode: float
    """Time per decoded token, in bytes read."""
    prefill: float
    """Time of a prefill of `PROMPT_TOKENS`, in weights per token."""


def footprint(card: ModelCard, formats: Mapping[str, QuantFormat], target: Target, memory: str) -> Footprint | None:
    """The footprint of a model; None where the target does not know one of the formats.

    Args:
        card: the model.
        formats: one for every tensor that is planned, by its name.
        target: where it runs.
        memory: MNN's setting.
    """
    if memory == "low" and not all(fmt.bits in target.widths for fmt in formats.values()):
        return None
    pairs = [(spec, formats[spec.name]) for spec in card.planned]
    return Footprint(
        sum(target.ram_bytes(spec, fmt, memory) for spec, fmt in pairs),
        sum(target.decode_bytes(spec, fmt, memory) for spec, fmt in pairs),
        sum(prefill_work(target, spec, fmt, memory) for spec, fmt in pairs),
    )


def prefill_work(target: Target, spec: TensorSpec, fmt: QuantFormat, memory: str) -> float:
    """What a tensor adds to `Footprint.prefill`."""
    work = target.prefill_work(spec, fmt, memory)
    return work / PROMPT_TOKENS if spec.role is Role.HEAD else work
