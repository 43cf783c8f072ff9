"""How ``llm_config.json`` tells the engine to read a tied embedding out of the head's bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qplan.errors import InputError
from qplan.formats import TIED_BITS, QuantFormat
from qplan.mnn.runtime import JsonScalar

TieForm = Literal["dict", "list"]
"""``dict`` since engine 3.6; ``list`` is read by 3.4.0 to 3.6.1, with 32-bit scales only."""


@dataclass(frozen=True)
class Tie:
    """Where the lookup finds a token's row."""

    weight_offset: int
    """First packed weight, after the record's header."""
    alpha_offset: int
    alpha_size: int
    """Bytes of the scales."""
    format: QuantFormat

    def to_json(self, form: TieForm) -> dict[str, JsonScalar] | list[int]:
        """The value of ``tie_embeddings``.

        Raises:
            InputError: the list form cannot say that scales have 16 bits.
        """
        bits, block = self.format.bits, self.format.block
        if form == "list":
            if not self.format.is_float and self.format.scale_bits != 32:
                msg = f"head in {self.format}: the list form of tie_embeddings needs 32-bit scales; "
                raise InputError(msg + f"use {self.format}-s32, or the dict form on engines from 3.6")
            return [self.weight_offset, self.alpha_offset, self.alpha_size, bits, block]
        return {
            "weight_offset": self.weight_offset,
            "alpha_offset": self.alpha_offset,
            "alpha_size": self.alpha_size,
            "quant_bit": bits,
            "quant_block": block,
            "alpha_dtype": f"fp{self.format.scale_bits}",
        }


def check_tied(op_name: str, fmt: QuantFormat) -> None:
    """Check that the engine can look tokens up in a matrix of this format.

    Raises:
        InputError: it would read garbage without an error.
    """
    if fmt.bits not in (*TIED_BITS, 32):
        msg = f"{op_name} is also the input embedding, which the engine reads wrongly at {fmt.bits} bits; "
        raise InputError(msg + f"use one of {TIED_BITS}")
