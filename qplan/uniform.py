"""MNN's uniform export: what a careful user makes today with its exporter."""

from __future__ import annotations

from qplan.card import ModelCard
from qplan.formats import FP16, INT_BITS, QuantFormat
from qplan.tensors import Role, TensorSpec

HEAD_BITS = 8
"""``--lm_quant_bit 8``: below it a tied embedding loses 15-40 % accuracy (MNN issue 3098)."""

UNIFORM_NAMES = {FP16.bits: "fp16"} | {bits: f"int{bits}" for bits in sorted(INT_BITS, reverse=True)}
"""Names of the uniform exports by their width, the widest first."""

COMPARED = {"fp16": 16, "int8": 8, "int4": 4}
"""Width by name of the uniform exports that every plan is compared with on the engine."""


def uniform_formats(card: ModelCard, bits: int, scale_bits: int = 16) -> dict[str, QuantFormat]:
    """Format by Hugging Face name of ``llmexport --quant_bit BITS --lm_quant_bit 8 --quant_block 64``.

    At 16 bits every tensor is fp16, the head included. Blocks that do not divide a row are halved until they do,
    as the exporter does it (rows of 172 get blocks of 4). A tied head gets one scale per row instead, since the engine
    decodes halved blocks there to garbage.
    """
    return {spec.name: _uniform_format(spec, bits, scale_bits) for spec in card.tensors}


def _uniform_format(spec: TensorSpec, bits: int, scale_bits: int) -> QuantFormat:
    if bits == FP16.bits:
        return FP16
    asked = QuantFormat(HEAD_BITS if spec.role is Role.HEAD else bits, scale_bits=scale_bits)
    return asked.resolve(spec.in_features) if spec.tied else asked.halved(spec.in_features)
