"""The uniform export that a plan is compared with: what a careful user makes today with MNN's exporter."""

from __future__ import annotations

from collections.abc import Mapping

from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.formats import FP16, QuantFormat
from qplan.model.card import ModelCard
from qplan.tensors import Role, TensorSpec

HEAD_BITS = 8
"""``--lm_quant_bit 8``: below it a tied embedding loses 15-40 % accuracy (MNN issue 3098)."""


def uniform_formats(card: ModelCard, bits: int, scale_bits: int = 16) -> dict[str, QuantFormat]:
    """Format by Hugging Face name of ``llmexport --quant_bit BITS --lm_quant_bit 8 --quant_block 64``.

    At 16 bits every tensor is fp16, the head included. Blocks that do not divide a row are what the exporter makes
    of them: halved until they divide (a width of 172 gets blocks of 4). A tied head gets one scale per row instead,
    since the engine decodes a halved block there to garbage.
    """
    return {spec.name: _uniform_format(spec, bits, scale_bits) for spec in card.tensors}


def uniform_loss(formats: Mapping[str, QuantFormat], losses: Mapping[str, Mapping[str, float]]) -> float | None:
    """Sum of single-tensor losses of given formats, None where one was not measured."""
    found = [losses.get(name, {}).get(fmt.name) for name, fmt in formats.items()]
    return None if any(loss is None for loss in found) else sum(loss for loss in found if loss is not None)


def _uniform_format(spec: TensorSpec, bits: int, scale_bits: int) -> QuantFormat:
    if bits == FP16.bits:
        return FP16
    asked = QuantFormat(HEAD_BITS if spec.role is Role.HEAD else bits, scale_bits=scale_bits)
    return asked.resolve(spec.in_features) if spec.tied else asked.halved(spec.in_features)


def largest_uniform(
    card: ModelCard, fixed: FixedBytes, limit_bytes: int, scale_bits: int = 16
) -> tuple[str, dict[str, QuantFormat]] | None:
    """The widest uniform export whose files are not larger than a limit, with its name; None if none is."""
    for bits in (16, 8, 6, 5, 4, 3, 2):
        formats = uniform_formats(card, bits, scale_bits)
        if file_bytes(card, formats, fixed).total <= limit_bytes:
            return ("fp16" if bits == 16 else f"int{bits}"), formats
    return None
