"""Terminals that are not UTF-8, or have no width: something is shown, and nothing fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "模型-é-\u200d-😀"


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        timeout=120,
    )


_MAIN = "from qplan.cli.main import main; main()"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a name that few encodings have."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "llm.mnn").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "latin-1"])
def test_what_cannot_be_shown_is_replaced(folder: Path, encoding: str) -> None:
    done = run(folder, "check", NAME, PYTHONIOENCODING=encoding)
    assert done.returncode == 8
    assert b"Traceback" not in done.stderr
    assert b"missing-file" in done.stdout
    assert b"\\u200d" in done.stderr  # what none of these encodings has, visibly escaped


def test_json_keeps_names_in_any_encoding(folder: Path) -> None:
    done = run(folder, "check", NAME, "--json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["model"] == NAME


@pytest.mark.parametrize("columns", ["0", "1", "1000000000000"])
def test_a_width_that_holds_no_sentence_is_no_width(folder: Path, columns: str) -> None:
    done = run(folder, "check", "--help", COLUMNS=columns)
    assert (done.returncode, b"Folder of an MNN model" in done.stdout) == (0, True)
    refused = run(folder, "check", "--engines", COLUMNS=columns)
    assert (refused.returncode, b"No such option" in refused.stderr) == (2, True)
