"""What a tokenizer's file says beside its vocabulary: ids that begin every text, and ids that end an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qplan.errors import InputError
from qplan.mnn.preflight.tokenizer_file import read_tokenizer
from qplan.model.inert import CONFIG_FILE, GENERATION_CONFIG_FILE
from qplan.model.source import read_config

_TOKENIZER_FILES = ("tokenizer.mtok", "tokenizer.txt")


def settle_ids(export: Path, view: Path) -> None:
    """Let texts begin and answers end on the engine as they do with Hugging Face's files.

    llmexport takes for a beginning what comes before the last token of ``A``. Where no token is a word's beginning with
    that letter, as with small or lower-case vocabularies of sentencepiece, the mark of a beginning stands before every
    text then. And it leaves the ids out at which ``generation_config.json`` ends an answer.

    Args:
        export: the exported folder.
        view: what the exporter was given.
    """
    ends = _ends(view)
    for path in (export / name for name in _TOKENIZER_FILES):
        if not path.is_file():
            continue
        try:
            found = read_tokenizer(path)
        except InputError:  # another exporter's, of which qplan check says what is wrong
            continue
        start = _start(view) if found.prefix else []
        stops = [*found.stops, *(end for end in ends if end not in found.stops)]
        kind, _, _, rest = path.read_bytes().split(b"\n", 3)
        counts = f"{len(found.special)} {len(stops)} {len(start)}"
        ids = " ".join(map(str, (*found.special, *stops, *start)))
        path.write_bytes(b"\n".join((kind, counts.encode(), ids.encode(), rest)))


def _start(view: Path) -> list[int]:
    from qplan.calibration import start_of_text  # noqa: PLC0415
    from qplan.model.load import load_tokenizer  # noqa: PLC0415 - torch

    return start_of_text(load_tokenizer(view, view))


def _ends(view: Path) -> list[int]:
    """Ids at which transformers' ``generate`` ends, as far as the model can say them."""
    config = read_config(view / CONFIG_FILE)
    generation = view / GENERATION_CONFIG_FILE
    ends: Any = read_config(generation).get("eos_token_id") if generation.is_file() else None
    ends = config.get("eos_token_id") if ends is None else ends
    ends = [ends] if isinstance(ends, int) else ends or []
    return [end for end in ends if 0 <= end < config.get("vocab_size", 0)]
