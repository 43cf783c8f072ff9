"""Uniform exports: one format for all tensors but the head, as people make them with MNN's own tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from qplan.card import ModelCard
from qplan.formats import FP16, INT_BITS, QuantFormat
from qplan.tensors import Role, TensorSpec

HEAD_BITS = 8
"""``--lm_quant_bit 8``: below it a tied embedding loses 15-40 % accuracy (MNN issue 3098)."""

UNIFORM_NAMES = {FP16.bits: "fp16"} | {bits: f"int{bits}" for bits in sorted(INT_BITS, reverse=True)}
"""Names of the plain uniform exports by their width, the widest first."""

UNIFORM_BITS = {name: bits for bits, name in UNIFORM_NAMES.items()}
"""Their widths by name."""

COMPARED = {"fp16": 16, "int8": 8, "int4": 4}
"""Width by name of the uniform exports that every plan is compared with on the engine."""

COMPARED_INTEGERS = tuple(name for name, bits in COMPARED.items() if bits != FP16.bits)
"""Those of them in integers."""

RIVALS = 1
"""Uniform models within a plan's limits that are built by default, besides `COMPARED`: the best one."""

NEAREST, HQQ = "rtn", "llmexport-hqq"
"""Roundings that MNN's tools have, as `qplan.roundings` calls them."""

_BLOCKS = (32, 64, 128, 0)
_HEAD_BITS = (16, 8, 4)
_EXPORTED_BITS, _CHECKOUT_BITS = (2, 4, 8, 16), (3,)
"""Widths that llmexport 0.0.5 writes, and those that the one of an MNN checkout writes too."""
_HEAD, _HQQ = "-head-", "-hqq"


@dataclass(frozen=True)
class UniformExport:
    """One way to export a model uniformly."""

    body: QuantFormat
    """Of all tensors but the head, before blocks are halved."""
    head: QuantFormat
    rounding: str = NEAREST
    """`NEAREST` or `HQQ`."""

    @classmethod
    def plain(cls, bits: int) -> UniformExport:
        """What a careful user makes: ``llmexport --quant_bit BITS --lm_quant_bit 8``, at 16 bits everything in fp16."""
        return cls(FP16, FP16) if bits == FP16.bits else cls.of(QuantFormat(bits))

    @classmethod
    def of(cls, body: QuantFormat, rounding: str = NEAREST) -> UniformExport:
        """The export with the head at 8 bits, and its blocks those of the others."""
        return cls(body, replace(body, bits=HEAD_BITS), rounding)

    @classmethod
    def parse(cls, name: str) -> UniformExport:
        """Read a `name`.

        Raises:
            InputError: it is none.
        """
        plain = name.removesuffix(_HQQ)
        body, _, head = plain.partition(_HEAD)
        rounding = NEAREST if plain == name else HQQ
        fmt = QuantFormat.parse(body)
        if fmt == FP16:
            return cls(FP16, FP16)
        return cls.of(fmt, rounding) if not head else cls(fmt, QuantFormat.parse(head), rounding)

    @property
    def name(self) -> str:
        """Short name, such as ``int4``, ``int6-b128-hqq`` or ``int5-head-fp16``; `parse` reads it back."""
        usual = self.body == FP16 or self.head == replace(self.body, bits=HEAD_BITS)
        return f"{self.body.name}{'' if usual else _HEAD + self.head.name}{_HQQ if self.rounding == HQQ else ''}"

    @property
    def command(self) -> str:
        """What makes it, with MNN's tools alone where they can."""
        body, head = self.body, self.head
        hqq = " --hqq" if self.rounding == HQQ else ""
        if body.bits not in (*_EXPORTED_BITS, *_CHECKOUT_BITS):
            # the converter has one width for all, so that a tied head is stored twice and a head loses as the others do
            block = f" --weightQuantBlock {body.block}" if body.block else ""
            symmetric = " --weightQuantAsymmetric=0" if body.symmetric else ""
            return f"mnnconvert --weightQuantBits {body.bits}{block}{symmetric}{hqq}, and the head by qplan as {head}"
        words = f"llmexport --export mnn --quant_bit {body.bits}"
        if body != FP16:
            words += f" --quant_block {body.block} --lm_quant_bit {head.bits}"
            words += f" --lm_quant_block {head.block}" if not head.is_float and head.block != body.block else ""
            words += " --sym" if body.symmetric else ""
        checkout = " (of an MNN checkout)" if body.bits in _CHECKOUT_BITS else ""
        return words + hqq + checkout

    def formats(self, card: ModelCard, scale_bits: int = 16) -> dict[str, QuantFormat]:
        """Format by Hugging Face name.

        Blocks that do not divide a row are halved until they do, as the exporter does it (rows of 172 get blocks of 4).
        A tied head gets one scale per row instead, since the engine decodes halved blocks there to garbage.
        """
        return {spec.name: self.format(spec, scale_bits) for spec in card.planned}

    def contains(self, other: UniformExport) -> bool:
        """Whether each tensor has at least the width, the scales and the zero points that it has in another export."""
        same = self.rounding == other.rounding or self.body.is_float
        return same and _contains(self.body, other.body) and _contains(self.head, other.head)

    def format(self, spec: TensorSpec, scale_bits: int = 16) -> QuantFormat:
        """Format of one tensor, see `formats`; an untied embedding stays at 16 bits, as it is exported by default."""
        if spec.is_embedding:
            return FP16
        asked = self.head if spec.role is Role.HEAD else self.body
        if asked.is_float:
            return asked
        asked = replace(asked, scale_bits=scale_bits)
        return asked.resolve(spec.in_features) if spec.tied else asked.halved(spec.in_features)


def uniform_formats(card: ModelCard, bits: int, scale_bits: int = 16) -> dict[str, QuantFormat]:
    """Format by Hugging Face name of `UniformExport.plain`."""
    return UniformExport.plain(bits).formats(card, scale_bits)


def built_exports(rivals: Sequence[str], most: int = RIVALS) -> tuple[UniformExport, ...]:
    """The uniform models that a plan is compared with on the engine.

    Args:
        rivals: names of those within the plan's limits, the best first.
        most: how many of these.
    """
    plain = [UniformExport.plain(bits) for bits in COMPARED.values()]
    return tuple(dict.fromkeys((*plain, *map(UniformExport.parse, rivals[:most]))))


def every_export() -> Iterator[UniformExport]:
    """All exports that can be the best one: widths, blocks, symmetry, roundings, and what the head may have."""
    yield UniformExport.plain(FP16.bits)
    for bits, block, symmetric, rounding in product(INT_BITS, _BLOCKS, (False, True), (NEAREST, HQQ)):
        body = QuantFormat(bits, block, symmetric)
        for head_bits in _HEAD_BITS:
            # the head's blocks are those of the others or whole rows
            for head_block in dict.fromkeys((block, 0)) if head_bits != FP16.bits else (0,):
                head = FP16 if head_bits == FP16.bits else QuantFormat(head_bits, head_block, symmetric)
                yield UniformExport(body, head, rounding)


def _contains(one: QuantFormat, other: QuantFormat) -> bool:
    """Whether a format has at least the width, the scales and the zero points of another."""
    if one.is_float or other.is_float:
        return one.bits >= other.bits
    finer = other.block in {one.block, 0} or 0 < one.block < other.block
    return one.bits >= other.bits and finer and one.symmetric <= other.symmetric
