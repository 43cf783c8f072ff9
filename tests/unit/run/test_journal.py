"""The journal survives anything, and refuses to go on from other inputs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qplan.errors import StaleArtifactError
from qplan.formats import INT4, INT8
from qplan.model.load import LoadedModel
from qplan.run.calibration import CalibrationSet
from qplan.run.journal import Journal, begun_with
from qplan.sensitivity.replay import ReferencePass
from tests.support.whole_tables import measured_table


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_table(
    tmp_path: Path, model_folders: dict[str, Path], qwen2: LoadedModel, calibration: CalibrationSet
) -> None:
    calibration.write(tmp_path / "calibration.json")
    journal = tmp_path / "journal.jsonl"
    script = Path(__file__).parents[2] / "support" / "kill_me.py"
    command = [
        sys.executable,
        *map(str, (script, model_folders["qwen2"], tmp_path / "calibration.json", journal, torch.get_num_threads())),
    ]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 30):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = journal.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 30 < kept.count(b"\n") < 176

    resumed = measured_table(qwen2, calibration, (INT8, INT4), batch_size=4, journal=journal)
    assert journal.read_bytes().startswith(kept)
    fresh = measured_table(qwen2, calibration, (INT8, INT4), batch_size=4)
    assert resumed.measurements == fresh.measurements
    assert resumed.sha256 == fresh.sha256


@pytest.mark.parametrize("cut", [1, 40, 200, 5000])
def test_a_torn_end_is_ignored(tmp_path: Path, qwen2: LoadedModel, calibration: CalibrationSet, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    whole = measured_table(qwen2, calibration, (INT8,), journal=path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert measured_table(qwen2, calibration, (INT8,), journal=path).sha256 == whole.sha256
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 2 + 88
    assert all(json.loads(line) for line in lines)


def test_a_finished_run_returns_at_once(
    tmp_path: Path, qwen2: LoadedModel, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured_table(qwen2, calibration, (INT8,), journal=tmp_path / "journal.jsonl")

    def never(*args: object) -> None:
        pytest.fail("the model was run again")

    monkeypatch.setattr(ReferencePass, "run", never)
    again = measured_table(qwen2, calibration, (INT8,), journal=tmp_path / "journal.jsonl")
    assert again.sha256 == whole.sha256


def test_other_inputs_are_refused_by_name(tmp_path: Path, qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    path = tmp_path / "journal.jsonl"
    measured_table(qwen2, calibration, (INT8,), journal=path)
    before = path.read_bytes()
    with pytest.raises(
        StaleArtifactError, match=r'formats was \["int8"\], now \["int8", "int4"\].*--run DIR.*--restart'
    ):
        measured_table(qwen2, calibration, (INT8, INT4), journal=path)
    with pytest.raises(StaleArtifactError, match="memory was low, now normal"):
        measured_table(qwen2, calibration, (INT8,), "normal", journal=path)
    with pytest.raises(StaleArtifactError, match="batch_size was 4, now 2"):
        measured_table(qwen2, calibration, (INT8,), batch_size=2, journal=path)
    changed = CalibrationSet(
        calibration.heldout, calibration.tokens, calibration.fit, "words", None, 0, calibration.tokenizer_sha256
    )
    with pytest.raises(StaleArtifactError, match=r"calibration was [0-9a-f]{12}\.\.\., now"):
        measured_table(qwen2, changed, (INT8,), journal=path)
    other = replace(qwen2, card=replace(qwen2.card, sha256="0" * 64))
    with pytest.raises(StaleArtifactError, match=r"model was [0-9a-f]{12}\.\.\., now 000000000000"):
        measured_table(other, calibration, (INT8,), journal=path)
    assert path.read_bytes() == before


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "diary"}\n')
    with pytest.raises(StaleArtifactError, match="not a journal"):
        Journal(path, {})
    path.write_text('{"kind": "qplan-journal", "schema": 99, "fingerprint": {}}\n')
    with pytest.raises(StaleArtifactError, match="schema 99"):
        Journal(path, {})


def test_the_header_alone_may_be_torn(tmp_path: Path, qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "qplan-jour')
    assert torch.tensor(len(measured_table(qwen2, calibration, (INT8,), journal=path).measurements)) == 88


def test_what_a_journal_was_begun_with_is_known_unless_that_was_damaged(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert begun_with(path) == {}
    with Journal(path, {"batch_size": 3, "memory": "low"}):
        assert begun_with(path) == {"batch_size": 3, "memory": "low"}
    path.write_bytes(path.read_bytes().replace(b'"batch_size": 3', b'"batch_size": 1'))
    assert begun_with(path) == {}
    path.write_bytes(b"\0" * 100)
    assert begun_with(path) == {}
