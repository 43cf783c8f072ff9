"""What every text begins with on the engine: the exporter guesses it, and the tokenizer knows it."""

from __future__ import annotations

from pathlib import Path

from qplan.mnn.preflight.tokenizer_file import read_tokenizer

_TOKENIZER_FILES = ("tokenizer.mtok", "tokenizer.txt")


def settle_text_start(export: Path, view: Path) -> None:
    """Let the engine put no other ids before a text than Hugging Face's tokenizer does.

    llmexport takes what comes before the last token of ``A``. Where no token is a word's beginning with that letter,
    as with small or lower-case vocabularies of sentencepiece, the mark of the beginning stands before every text then.

    Args:
        export: the exported folder.
        view: what the exporter was given.

    Raises:
        InputError: a tokenizer file that can't be read.
    """
    from qplan.calibration import start_of_text  # noqa: PLC0415
    from qplan.model.load import load_tokenizer  # noqa: PLC0415 - torch

    for path in (export / name for name in _TOKENIZER_FILES):
        if not path.is_file():
            continue
        found = read_tokenizer(path)
        if found.prefix:
            start = start_of_text(load_tokenizer(view, view))
            kind, _, _, rest = path.read_bytes().split(b"\n", 3)
            counts = f"{len(found.special)} {len(found.stops)} {len(start)}"
            ids = " ".join(map(str, (*found.special, *found.stops, *start)))
            path.write_bytes(b"\n".join((kind, counts.encode(), ids.encode(), rest)))
