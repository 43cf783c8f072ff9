"""Windows of token ids: disjoint, reproducible, hashed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qplan.artifact import SEAL
from qplan.calibration import Text, tokenize
from qplan.errors import InputError, StaleArtifactError
from qplan.model.load import LoadedModel
from qplan.run.calibration import CalibrationSet
from tests.support.tiny_models import VOCABULARY, words


def _cut(
    loaded: LoadedModel, *, samples: int = 4, seq_len: int = 16, seed: int = 0, count: int = 200
) -> CalibrationSet:
    text = Text((words(count, seed=3), words(count, seed=4)), "two documents", "CC0-1.0")
    return tokenize(
        text, loaded.tokenizer, samples=samples, seq_len=seq_len, seed=seed, context=128, vocabulary=VOCABULARY
    )


def test_windows_are_disjoint_pieces_of_the_text(qwen2: LoadedModel) -> None:
    found = _cut(qwen2)
    documents = (words(200, seed=3), words(200, seed=4))
    ids = np.concatenate([qwen2.tokenizer(d, add_special_tokens=False)["input_ids"] for d in documents])
    windows = [tuple(w) for w in ids[: len(ids) // 16 * 16].reshape(-1, 16)]
    chosen = [windows.index(tuple(row)) for row in (*found.tokens, *found.heldout)]
    assert len(set(chosen)) == len(chosen) == 8
    assert found.tokens.dtype == np.int64
    assert chosen[:4] == sorted(chosen[:4])


def test_the_seed_decides(qwen2: LoadedModel) -> None:
    assert _cut(qwen2).sha256 == _cut(qwen2).sha256
    assert _cut(qwen2).sha256 != _cut(qwen2, seed=1).sha256


def test_few_windows_leave_fewer_to_hold_out(qwen2: LoadedModel) -> None:
    total = sum(len(part) for part in (_cut(qwen2, samples=1, seq_len=2, count=5).tokens,))
    assert total == 1
    found = _cut(qwen2, samples=5, seq_len=10, count=9)
    assert 1 <= len(found.heldout) < 5


def test_it_is_read_back(tmp_path: Path, qwen2: LoadedModel) -> None:
    found = _cut(qwen2)
    found.write(tmp_path / "calibration.json")
    again = CalibrationSet.read(tmp_path / "calibration.json")
    np.testing.assert_array_equal(found.tokens, again.tokens)
    np.testing.assert_array_equal(found.heldout, again.heldout)
    assert (again.sha256, again.license, again.source) == (found.sha256, "CC0-1.0", "two documents")
    assert again.tokenizer_sha256 == found.tokenizer_sha256
    assert (tmp_path / "calibration.json").stat().st_size < 4000


def test_changed_ids_and_newer_files_are_refused(tmp_path: Path, qwen2: LoadedModel) -> None:
    path = tmp_path / "calibration.json"
    _cut(qwen2).write(path)
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"tokens": value["heldout"]}))
    with pytest.raises(InputError, match="does not match its sha256"):
        CalibrationSet.read(path)
    del value[SEAL]  # a newer version's own would match
    path.write_text(json.dumps(value | {"schema": 99}))
    with pytest.raises(StaleArtifactError):
        CalibrationSet.read(path)


def test_a_short_text_says_what_is_needed(qwen2: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"has \d+ tokens; --samples 100 --seq-len 64 needs 6400, and 64 more"):
        _cut(qwen2, samples=100, seq_len=64)


@pytest.mark.parametrize(
    ("samples", "seq_len", "message"),
    [(0, 16, "--samples 0"), (4, 1, "--seq-len 1: at least 2"), (4, 129, "context of 128 tokens; lower it")],
)
def test_impossible_limits_are_refused(qwen2: LoadedModel, samples: int, seq_len: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _cut(qwen2, samples=samples, seq_len=seq_len)


def test_a_tokenizer_of_another_model_is_refused(qwen2: LoadedModel) -> None:
    text = Text((words(200),), "words", None)
    with pytest.raises(InputError, match="do not belong together"):
        tokenize(text, qwen2.tokenizer, samples=2, seq_len=8, seed=0, context=128, vocabulary=10)


def test_kinds_of_text_are_taken_alike(qwen2: LoadedModel) -> None:
    long, short = words(2000, seed=3), words(40, seed=4)
    text = Text((long, short), "two kinds", None, names=("long", "short"))
    found = tokenize(
        text, qwen2.tokenizer, samples=4, seq_len=16, seed=0, context=128, vocabulary=VOCABULARY, fit_tokens=320
    )
    ids = qwen2.tokenizer(short, add_special_tokens=False)["input_ids"]
    windows = {tuple(window) for window in np.asarray(ids[: len(ids) // 16 * 16]).reshape(-1, 16)}
    of_short = [sum(tuple(row) in windows for row in part) for part in (found.tokens, found.heldout, found.fit)]
    assert of_short[:2] == [2, 2]
    assert of_short[2] == len(windows) - 4, "what the shorter one has left"
    assert len(found.fit) == 20
    together = [tuple(row) for row in (*found.tokens, *found.heldout, *found.fit)]
    assert len(set(together)) == len(together)
