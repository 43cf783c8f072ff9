"""The file that tokens are looked up in where the embedding is not the head: as exported, or of integers.

Of integers it holds the codes of all rows, then a pair (zero, scale) of fp32 for every block, row by row. The record
``tie_embeddings`` says so, with an offset of 0, and ``config.json`` names the file. So does ``llmexport --embed_bit``.
"""

from __future__ import annotations

import json
from pathlib import Path

from qplan.errors import InputError
from qplan.formats import FP16, QuantFormat
from qplan.mnn.files import EMBEDDING_FILE, EMBEDDING_FILES, LLM_CONFIG_FILE
from qplan.mnn.graph.tie import TieRecord, read_tie
from qplan.rounding.stored import IntTensor


def write_embedding(embedding: IntTensor, folder: Path) -> TieRecord:
    """Write a file of integers, named by their width; returns the record of it."""
    path = folder / EMBEDDING_FILES[embedding.format.bits]
    with path.open("wb") as file:
        codes = sum(map(file.write, embedding.code_parts()))
        scales = file.write(embedding.alpha_bytes())
    return TieRecord.of(embedding.format, 0, codes, scales)


def embedding_format(folder: Path) -> QuantFormat | None:
    """Format of a built folder's embedding file; None if it has none of its own."""
    try:
        tie = read_tie(json.loads((folder / LLM_CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, InputError):
        return None
    if tie is None:
        return FP16 if (folder / EMBEDDING_FILE).is_file() else None
    apart = tie.weight_offset == 0 and (folder / EMBEDDING_FILES.get(tie.bits, "")).is_file()
    return QuantFormat(tie.bits, tie.block, scale_bits=tie.scale_bits) if apart else None
