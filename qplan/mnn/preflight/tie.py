"""The record by which the engine looks tokens up in the head's bytes, against the head."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.errors import InputError
from qplan.formats import FP16, TIED_BITS
from qplan.mnn.engines import HALF_SCALES, TIE_RECORD_OBJECT
from qplan.mnn.files import EMBEDDING_FILE, EMBEDDING_KEY, LLM_CONFIG_FILE
from qplan.mnn.graph.linear import HALVES, INTEGERS, Linear
from qplan.mnn.graph.tie import TIE_KEY, TieRecord, read_tie
from qplan.mnn.preflight.finding import EXPORT_AGAIN, GARBAGE, Finding, error, warning
from qplan.mnn.preflight.model import ModelFolder

_WHERE = f"{LLM_CONFIG_FILE}, {TIE_KEY}"


def lookup_range(model: ModelFolder) -> tuple[int, int] | None:
    """Bytes of the weight file that the lookup reads codes from."""
    tie, head = model.tie, model.head()
    if tie is None or head is None or tie.weight_offset == 0:
        return None
    return tie.weight_offset, tie.weight_offset + head.weights * tie.bits // 8


def check_tie(model: ModelFolder) -> Iterator[Finding]:
    """Whether the lookup decodes what the head's record holds, in a form that the engine knows."""
    if not model.tied:
        return
    try:
        tie = read_tie(model.settings)
    except InputError as problem:
        yield error("tie-malformed", _WHERE, str(problem), GARBAGE, EXPORT_AGAIN)
        return
    if tie is None:
        what = f"{TIE_KEY} is null, which the engine takes for a record"
        yield error("tie-malformed", _WHERE, what, "a crash (SIGFPE)", f"take {TIE_KEY} out, or export again")
        return
    yield from _check_form(model, tie)
    if tie.bits not in TIED_BITS:
        what = f"tokens are looked up at {tie.bits} bits; the engine decodes {', '.join(map(str, TIED_BITS))}"
        yield error("tie-width", _WHERE, what, GARBAGE, "build the model with the head at 4, 8 or 16 bits")
        return
    if tie.weight_offset == 0:
        yield from _check_apart(model, tie)
        return
    head = model.head()
    if head is None or not head.external:
        return
    if head.coding not in {INTEGERS, HALVES}:
        yield from _check_halves_beside(model, tie, head)
    else:
        yield from _check_against(tie, head, model.whole("hidden_size"))


def _check_form(model: ModelFolder, tie: TieRecord) -> Iterator[Finding]:
    if tie.form == "dict" and model.engine < TIE_RECORD_OBJECT:
        what = f"it is an object; engine {model.engine} reads a list"
        yield error("tie-form", _WHERE, what, "a crash or " + GARBAGE, f"qplan emit --engine {model.engine}")
    if tie.scale_bits == 16 and model.engine < HALF_SCALES:
        what = f"its scales have 16 bits; engine {model.engine} reads 32"
        yield error("tie-scales", _WHERE, what, GARBAGE, f"qplan emit --engine {model.engine}")


def _check_apart(model: ModelFolder, tie: TieRecord) -> Iterator[Finding]:
    """A table in a file of its own, which holds codes and then scales; that it is there is checked with all files."""
    path = model.path(EMBEDDING_KEY, EMBEDDING_FILE)
    if not path.is_file():
        return
    size, end = path.stat().st_size, tie.alpha_offset + tie.alpha_size
    if size < end:
        what = f"its scales end at byte {end:,} of {path.name}, which has {size:,}"
        yield error("tie-offset", _WHERE, what, GARBAGE, EXPORT_AGAIN)
        return
    head, hidden = model.head(), model.whole("hidden_size")
    if head is None or hidden is None or hidden <= 0:
        return
    if tie.block and hidden % tie.block:
        what = f"blocks of {tie.block} do not divide rows of {hidden}"
        yield error("tie-block", _WHERE, what, "NaN or " + GARBAGE, "build it with a block that divides, or 0")
        return
    yield from _check_rows(tie, head.out_features, hidden)
    if size > end and tie.bits != FP16.bits:
        what = f"{size:,} bytes, its scales end at byte {end:,}"
        effect = "nothing reads the rest; another model's embedding means garbage without a message"
        yield warning("embedding-size", path.name, what, effect, "compare it with the folder it was copied from")


def _check_rows(tie: TieRecord, vocabulary: int, hidden: int) -> Iterator[Finding]:
    """Codes of a row for every token, and as many scales as the engine takes from where the codes end."""
    codes, rows = vocabulary * hidden * tie.bits // 8, tie.rows(hidden)
    if tie.alpha_offset < codes or rows is None:
        takes = f"{vocabulary:,} tokens of {hidden} numbers take {codes:,}"
        what = f"its scales begin at byte {tie.alpha_offset:,}, and {takes}"
        yield error("tie-offset", _WHERE, what, f"tokens without a row have {GARBAGE}", EXPORT_AGAIN)
        return
    one, two = (tie.scales_bytes(rows, hidden, numbers) for numbers in (1, 2))
    if tie.bits != FP16.bits and tie.alpha_size not in {one, two}:
        blocks = f"{rows:,} rows in blocks of {tie.block or hidden}"
        what = f"its scales are {tie.alpha_size:,} bytes; those of {blocks} are {two:,}, or {one:,} without zero points"
        yield error("tie-scales", _WHERE, what, GARBAGE, EXPORT_AGAIN)
    elif rows > vocabulary:
        what = f"it has {rows:,} rows for a vocabulary of {vocabulary:,}"
        effect = "right if only the head was shortened; another model's embedding means garbage without a message"
        yield warning("embedding-size", _WHERE, what, effect, "compare it with the folder it was copied from")


def _check_halves_beside(model: ModelFolder, tie: TieRecord, head: Linear) -> Iterator[Finding]:
    """A head in fp32: the lookup has its own fp16 copy, anywhere in the weight file."""
    end = tie.weight_offset + 2 * head.weights
    if tie.bits != 16 or end > model.weight_bytes:
        what = f"{tie.bits} bits up to byte {end:,} of {model.weight_bytes:,}, for a head of floats"
        yield error("tie-offset", _WHERE, what, GARBAGE, EXPORT_AGAIN)


def _check_against(tie: TieRecord, head: Linear, hidden: int | None) -> Iterator[Finding]:
    name, bits, record = head.name, head.bits, head.record
    start, weight_len, alpha_len = record.offset, record.weight, record.alpha
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
    elif tie.scale_bits != head.scale_bits:
        what = f"it reads scales of {tie.scale_bits} bits, {name} has {head.scale_bits}"
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
