"""The uniform export that a plan is compared with: what a careful user would make with MNN's exporter."""

from __future__ import annotations

from collections.abc import Mapping

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.formats import QuantFormat
from qplan.uniform import UNIFORM_NAMES, uniform_formats


def uniform_loss(formats: Mapping[str, QuantFormat], losses: Mapping[str, Mapping[str, float]]) -> float | None:
    """Sum of the single losses of given formats; None if one was not measured."""
    found = [losses.get(name, {}).get(fmt.name) for name, fmt in formats.items()]
    return None if any(loss is None for loss in found) else sum(loss for loss in found if loss is not None)


def largest_uniform(
    card: ModelCard, fixed: FixedBytes, limit_bytes: int, scale_bits: int = 16
) -> tuple[str, dict[str, QuantFormat]] | None:
    """The widest uniform export whose files are no larger than a limit, with its name; None if none fits."""
    for bits, name in UNIFORM_NAMES.items():
        formats = uniform_formats(card, bits, scale_bits)
        if file_bytes(card, formats, fixed).total <= limit_bytes:
            return name, formats
    return None
