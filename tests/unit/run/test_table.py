"""sensitivity.parquet: written and read again; tables of earlier versions keep their hash, which plans recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from qplan.artifact import SEAL
from qplan.notes import note, text_note
from qplan.run.table import SensitivityTable
from tests.support.invented_table import make_table


def test_notes_come_back(tmp_path: Path) -> None:
    made = (note("wide-scales", engine="3.5.0"), note("folded", ratios={"int8, memory low": 0.9}), text_note("a text"))
    table = replace(make_table(), notes=made)
    table.write(tmp_path / "sensitivity.parquet")
    read = SensitivityTable.read(tmp_path / "sensitivity.parquet")
    assert read == table
    assert read.sha256 == table.sha256
    assert table.sha256 != make_table().sha256


def test_a_table_of_before_codes_opens_with_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.parquet"
    make_table().write(path)
    stored = pq.read_table(path)
    meta = json.loads(stored.schema.metadata[b"qplan"]) | {"schema": 3, "notes": ["something of before"]}
    del meta[SEAL]  # which they lacked
    pq.write_table(stored.replace_schema_metadata({"qplan": json.dumps(meta, sort_keys=True)}), path)
    read = SensitivityTable.read(path)
    assert list(map(str, read.notes)) == ["something of before"]
    # of the version before, with the note that it added for an engine that reads wide scales only
    retargeted = replace(read, notes=(*read.notes, note("wide-scales", engine="3.5.0")))
    assert retargeted.sha256 == "9d6e1bf81311857ce8e5571fd17642bc5d5db1ce9c6f6f6a2fae9f0c70028c40"
    assert make_table().sha256 == "6e4fc64fecc0a462d70c55555d49604462d50b968d6b4b57424cf4ce7603608a"
