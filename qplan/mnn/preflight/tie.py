"""The record that tells the engine to look tokens up in the head's bytes, against the head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qplan.formats import TIED_BITS
from qplan.mnn.engines import HALF_SCALES, TIE_RECORD_OBJECT
from qplan.mnn.graph.binary import Convolution
from qplan.mnn.preflight.finding import EXPORT_AGAIN, GARBAGE, Finding, error
from qplan.mnn.preflight.model import ModelFolder

_WHERE = "llm_config.json, tie_embeddings"
_KEYS = ("weight_offset", "alpha_offset", "alpha_size", "quant_bit", "quant_block")


@dataclass(frozen=True)
class TieRecord:
    """The record, whichever form it has."""

    weight_offset: int
    alpha_offset: int
    alpha_size: int
    bits: int
    block: int
    half_scales: bool
    is_list: bool


def read_tie(value: object) -> TieRecord | None:
    """The record; None if it is not one."""
    if isinstance(value, list):
        parts: list[object] = list(value)
        half = len(parts) > 5 and bool(parts[5])
    elif isinstance(value, dict):
        parts, half = [value.get(key) for key in _KEYS], value.get("alpha_dtype", "fp32") == "fp16"
    else:
        return None
    numbers = [part for part in parts[:5] if isinstance(part, int) and not isinstance(part, bool) and part >= 0]
    if len(numbers) < 5:
        return None
    offset, alpha_offset, alpha_size, bits, block = numbers
    return TieRecord(offset, alpha_offset, alpha_size, bits, block, half, isinstance(value, list))


def lookup_range(model: ModelFolder) -> tuple[int, int] | None:
    """Bytes of the weight file that the lookup reads codes from."""
    tie, head = read_tie(model.settings.get("tie_embeddings")), model.head()
    if tie is None or head is None or tie.weight_offset == 0:
        return None
    convolution = head[1]
    return tie.weight_offset, tie.weight_offset + convolution.weights * tie.bits // 8


def check_tie(model: ModelFolder) -> Iterator[Finding]:
    """Whether the lookup decodes what the head's record holds, in a form that the engine knows."""
    if not model.tied:
        return
    tie = read_tie(model.settings["tie_embeddings"])
    if tie is None:
        what = f"{model.settings['tie_embeddings']!r} is neither five numbers nor an object of {', '.join(_KEYS)}"
        yield error("tie-malformed", _WHERE, what, GARBAGE, EXPORT_AGAIN)
        return
    yield from _check_form(model, tie)
    if tie.bits not in TIED_BITS:
        what = f"tokens are looked up at {tie.bits} bits; the engine decodes {', '.join(map(str, TIED_BITS))}"
        yield error("tie-width", _WHERE, what, GARBAGE, "build the model with the head at 4, 8 or 16 bits")
        return
    found = model.head()
    if found is None or not found[1].external or tie.weight_offset == 0:  # 0 is a file of its own
        return
    head = found[1]
    if head.coding not in (1, 3):
        yield from _check_halves_beside(model, tie, head)
    else:
        yield from _check_against(tie, *found, model.whole("hidden_size"))


def _check_form(model: ModelFolder, tie: TieRecord) -> Iterator[Finding]:
    if not tie.is_list and model.engine < TIE_RECORD_OBJECT:
        what = f"it is an object; engine {model.engine} reads a list"
        yield error("tie-form", _WHERE, what, "a crash or " + GARBAGE, f"qplan emit --engine {model.engine}")
    if tie.half_scales and model.engine < HALF_SCALES:
        what = f"its scales have 16 bits; engine {model.engine} reads 32"
        yield error("tie-scales", _WHERE, what, GARBAGE, f"qplan emit --engine {model.engine}")


def _check_halves_beside(model: ModelFolder, tie: TieRecord, head: Convolution) -> Iterator[Finding]:
    """A head of floats: the lookup has halves of its own, anywhere in the weight file."""
    end = tie.weight_offset + 2 * head.weights
    if tie.bits != 16 or end > model.weight_bytes:
        what = f"{tie.bits} bits up to byte {end:,} of {model.weight_bytes:,}, for a head of floats"
        yield error("tie-offset", _WHERE, what, GARBAGE, EXPORT_AGAIN)


def _check_against(tie: TieRecord, name: str, head: Convolution, hidden: int | None) -> Iterator[Finding]:
    start, weight_len, alpha_len = (*head.external, 0, 0)[:3]
    bits = 16 if head.coding == 3 else head.bits
    if tie.bits != bits:
        what = f"it says {tie.bits} bits, {name} has {bits}"
        yield error("tie-bits", _WHERE, what, GARBAGE, EXPORT_AGAIN)
        return
    header = 0 if bits == 16 else weight_len - (head.weights * bits + 7) // 8
    if tie.weight_offset != start + header:
        what = f"it starts at byte {tie.weight_offset:,}, the weights of {name} at {start + header:,}"
        yield error("tie-offset", _WHERE, what, GARBAGE, EXPORT_AGAIN)
    if bits == 16:
        return
    if (tie.alpha_offset, tie.alpha_size) != (start + weight_len, alpha_len):
        what = f"its scales are {tie.alpha_size:,} bytes at {tie.alpha_offset:,}, "
        what += f"those of {name} {alpha_len:,} at {start + weight_len:,}"
        yield error("tie-scales", _WHERE, what, GARBAGE, EXPORT_AGAIN)
    elif tie.half_scales != (head.scale_bits == 16):
        what = f"it reads scales of {16 if tie.half_scales else 32} bits, {name} has {head.scale_bits}"
        yield error("tie-scales", _WHERE, what, GARBAGE, EXPORT_AGAIN)
    width = hidden or head.in_features
    pairs = head.out_features * (1 if head.symmetric else 2)
    blocks = alpha_len * 8 // head.scale_bits // max(1, pairs)
    if tie.block and width % tie.block:
        what = f"blocks of {tie.block} do not divide rows of {width}"
        yield error("tie-block", _WHERE, what, "NaN or " + GARBAGE, "build the head with a block that divides, or 0")
    elif blocks and (width // tie.block if tie.block else 1) != blocks:
        what = f"blocks of {tie.block or width} weights, {name} has {blocks} in a row of {width}"
        yield error("tie-block", _WHERE, what, "NaN or " + GARBAGE, EXPORT_AGAIN)
