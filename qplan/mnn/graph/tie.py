"""``tie_embeddings`` of ``llm_config.json``: how the engine reads a tied embedding out of the head's bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qplan.errors import InputError
from qplan.formats import TIED_BITS, QuantFormat
from qplan.mnn.runtime import JsonScalar

TieForm = Literal["dict", "list"]
"""``dict`` since engine 3.6; ``list`` is read by 3.4.0 to 3.6.1, with 32-bit scales only."""

TIE_KEY = "tie_embeddings"

_KEYS = ("weight_offset", "alpha_offset", "alpha_size", "quant_bit", "quant_block")
"""Keys of the dict form, in the order of the list form."""

_SCALES = "alpha_dtype"


@dataclass(frozen=True)
class TieRecord:
    """Where the lookup finds a token's row, and how it decodes it."""

    weight_offset: int
    """First packed weight, after the record's header; 0 for a separate file."""
    alpha_offset: int
    alpha_size: int
    """Bytes of the scales."""
    bits: int
    block: int
    """Weights that share a scale; 0 for a whole row."""
    scale_bits: int
    form: TieForm = "dict"

    @classmethod
    def of(cls, fmt: QuantFormat, weight_offset: int, alpha_offset: int, alpha_size: int) -> TieRecord:
        """The record of a matrix in a format."""
        return cls(weight_offset, alpha_offset, alpha_size, fmt.bits, fmt.block, fmt.scale_bits)

    @classmethod
    def parse(cls, value: object) -> TieRecord:
        """Read the record, whichever form it has.

        As the engine does: a sixth element of a list says that scales have 16 bits, and so does ``fp16`` of a dict.

        Raises:
            InputError: it has neither form, or holds something other than whole numbers from 0.
        """
        form: TieForm = "list" if isinstance(value, list) else "dict"
        parts: list[object] = []
        half = False
        if isinstance(value, list):
            parts, half = value[: len(_KEYS)], any(value[len(_KEYS) : len(_KEYS) + 1])
        elif isinstance(value, dict):
            parts, half = [value.get(key) for key in _KEYS], value.get(_SCALES) == "fp16"
        numbers = [part for part in parts if isinstance(part, int) and not isinstance(part, bool) and part >= 0]
        if len(numbers) != len(_KEYS):
            msg = f"{value!r:.200} is neither five whole numbers nor an object of {', '.join(_KEYS)}"
            raise InputError(msg)
        offset, alpha_offset, alpha_size, bits, block = numbers
        return cls(
            offset, alpha_offset, alpha_size, bits, block, 16 if half else 32, "list" if form == "list" else "dict"
        )

    def rows(self, width: int) -> int | None:
        """Rows of ``width`` numbers in a file of its own, as the engine counts them; None if they are not whole."""
        rows, rest = divmod(8 * self.alpha_offset, self.bits * width)
        return None if rest else rows

    def scales_bytes(self, rows: int, width: int, numbers: int) -> int:
        """Bytes of scales in a file of its own, where every block has one number (symmetric) or two (zero, scale)."""
        return rows * (width // self.block if self.block else 1) * numbers * self.scale_bits // 8

    def to_json(self) -> dict[str, JsonScalar] | list[int]:
        """The value of ``tie_embeddings``; a list cannot say that scales have 16 bits, see `check_tied`."""
        numbers = [self.weight_offset, self.alpha_offset, self.alpha_size, self.bits, self.block]
        return (
            numbers
            if self.form == "list"
            else {**dict(zip(_KEYS, numbers, strict=True)), _SCALES: f"fp{self.scale_bits}"}
        )


def read_tie(settings: Mapping[str, object]) -> TieRecord | None:
    """Read the record in a model's settings; None if its embedding is not tied.

    Raises:
        InputError: not such a record.
    """
    value = settings.get(TIE_KEY)
    return None if value is None else TieRecord.parse(value)


def check_tied(op_name: str, fmt: QuantFormat, form: TieForm) -> None:
    """Check that the engine can look tokens up in a matrix of this format, and that the record's form can say so.

    fp32 passes: an fp16 copy is stored beside it.

    Raises:
        InputError: it would read garbage without an error.
    """
    if not fmt.can_be_looked_up and fmt.bits != 32:
        msg = f"{op_name} is also the input embedding, which the engine reads wrongly at {fmt.bits} bits; "
        raise InputError(msg + f"use one of {TIED_BITS}")
    if form == "list" and not fmt.is_float and fmt.scale_bits != 32:
        msg = f"head in {fmt}: the list form of {TIE_KEY} needs 32-bit scales; "
        raise InputError(msg + f"use {fmt}-s32, or the dict form on engines from 3.6")
