"""Text from every source, and a remedy for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoTokenizer

import qplan.demo
from qplan import calib_sets as sets_module
from qplan.artifact import sha256_file
from qplan.calibration import files, load_text
from qplan.errors import InputError
from qplan.model.load import LoadedModel


def _write_lines(path: Path, *records: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n", encoding="utf-8")
    return path


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("eins\r\nzwei ö\n".encode())
    text = load_text(str(path))
    assert text.documents == ("eins\r\nzwei ö\n",)
    assert text.source == str(path)


def test_jsonl_takes_text_or_content_and_skips_blank_lines(tmp_path: Path) -> None:
    path = _write_lines(tmp_path / "a.jsonl", {"text": "one", "id": 1}, "", {"content": "two"})
    assert load_text(str(path)).documents == ("one", "two")


def test_chat_messages_go_through_the_template(tmp_path: Path, qwen2: LoadedModel) -> None:
    path = _write_lines(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    assert load_text(str(path), qwen2.tokenizer).documents == ("<user>hi\n",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"line 2 is not valid JSON"),
        ('["a"]', r"line 2 holds a JSON list"),
        ('{"body": "a"}', r"line 2 has none of the fields text, content, messages; it has body"),
        ('{"text": 3}', r"line 2: field 'text' holds a int"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"line 2 holds chat messages and .* no chat template"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = _write_lines(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(InputError, match=message):
        load_text(str(path))


def test_malformed_messages_are_refused(tmp_path: Path) -> None:
    path = _write_lines(tmp_path / "a.jsonl", {"messages": ["hi"]})
    with pytest.raises(InputError, match="list of objects with role and content"):
        load_text(str(path), SimpleNamespace(chat_template="x"))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": ["one", "two"]}), path)
    assert load_text(str(path)).documents == ("one", "two")


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        load_text(str(path))


def test_a_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 noir")
    with pytest.raises(InputError, match="not UTF-8"):
        load_text(str(path))


def test_a_dataset_folder_with_a_split_of_choice(tmp_path: Path) -> None:
    _write_lines(tmp_path / "test.jsonl", {"text": "tested"})
    _write_lines(tmp_path / "train.jsonl", {"text": "trained"}, {"text": "more"})
    chosen = load_text(str(tmp_path))
    assert chosen.documents == ("trained", "more")
    assert chosen.source.endswith(":train")
    assert load_text(f"{tmp_path}::test").documents == ("tested",)
    with pytest.raises(InputError, match="no split 'dev'; it has"):
        load_text(f"{tmp_path}::dev")


def test_a_saved_dataset(tmp_path: Path) -> None:
    whole = datasets.DatasetDict({"validation": datasets.Dataset.from_dict({"text": ["a", "b"]})})
    whole.save_to_disk(tmp_path / "saved")
    assert load_text(str(tmp_path / "saved")).documents == ("a", "b")


def test_a_dataset_that_cannot_be_opened_names_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"folder .*empty.* holds no data file that can be read .*; give a \.txt"):
        load_text(str(tmp_path / "empty"))


def test_a_dataset_is_not_waited_for_where_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        msg = "no network"
        raise LocalEntryNotFoundError(msg)

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"'owner/name' is neither a file.* and the hub cannot be reached"):
        load_text("owner/name")


def test_unknown_extension_missing_file_and_empty_text(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_text("x")
    with pytest.raises(InputError, match=r"'\.docx' is not understood; use \.txt, \.jsonl, \.parquet"):
        load_text(str(path))
    with pytest.raises(InputError, match="does not exist"):
        load_text(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(InputError, match="holds no text"):
        load_text(str(tmp_path / "empty.txt"))


def _fake_calib(monkeypatch: pytest.MonkeyPatch, package: Path, folder: Path, content: str) -> None:
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text("known text")
    digest = sha256_file(folder / "text.txt")
    (folder / "text.txt").write_text(content)
    manifest = {"name": "mine", "licence": "CC0-1.0", "files": ["text.txt"], "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(sets_module, "__file__", str(package / "calib_sets.py"))


@pytest.mark.parametrize("place", ["calib/mine", "qplan/calib/mine"])
def test_a_calib_set_is_found_in_a_checkout_and_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    _fake_calib(monkeypatch, tmp_path / "qplan", tmp_path / place, "known text")
    text = load_text("mine")
    assert (text.documents, text.source, text.license) == (("known text",), "mine", "CC0-1.0")
    assert sets_module.calib_sets() == {"mine": tmp_path / place}


def test_a_changed_calib_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_calib(monkeypatch, tmp_path / "qplan", tmp_path / "calib/mine", "changed text")
    with pytest.raises(InputError, match="its manifest says"):
        load_text("mine")


def test_the_sets_that_come_with_qplan() -> None:
    text = load_text("python-stdlib")
    assert text.license == "PSF-2.0"
    assert len(text.documents[0]) > 100_000
    mixture = load_text("mixture")
    assert "CC-BY-SA-3.0" in str(mixture.license)
    sizes = [len(part.encode()) for part in mixture.documents]
    assert len(sizes) == 4
    assert min(sizes) > sum(sizes) / 6
    assert sum(sizes) < 300_000


def test_kinds_whose_script_a_tokenizer_does_not_know_are_left_out() -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(qplan.demo.__file__).parent / "stdlib-3m")
    told: list[str] = []
    known = load_text("mixture", tokenizer, told.append)
    assert known.documents == load_text("mixture").documents[:3]
    assert known.kinds
    assert [found.code for found in known.notes] == ["script-unknown"]
    assert told == [
        "chinese.txt of mixture is left out: the model's tokenizer takes 2.5 tokens per character of its script"
    ]


def test_reading_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_CHARACTERS", 5)
    path = _write_lines(tmp_path / "a.jsonl", {"text": "abc"}, {"text": "defg"}, "not read, so not refused")
    assert load_text(str(path)).documents == ("abc", "de")


def test_null_text_is_named_with_its_record(tmp_path: Path) -> None:
    path = _write_lines(tmp_path / "a.jsonl", {"text": "fine"}, {"text": None})
    with pytest.raises(InputError, match=r"^text is null in .*a\.jsonl, line 2; give it text, or take the record out"):
        load_text(str(path))


def test_halves_of_surrogate_pairs_are_replaced_and_told(tmp_path: Path) -> None:
    path = _write_lines(tmp_path / "a.jsonl", r'{"text": "a\ud83d b"}', r'{"text": "\ud83d\ude00"}')
    text = load_text(str(path))
    assert text.documents == ("a\ufffd b", "\U0001f600")
    assert [(found.code, found.values["records"]) for found in text.notes] == [("surrogates-replaced", 1)]


@pytest.mark.parametrize(
    "line", ['{"n": ' + "9" * 5000 + ', "text": "a"}', '{"a":' * 100_000 + "1" + "}" * 100_000], ids=["digits", "deep"]
)
def test_json_that_python_cannot_hold_is_refused(tmp_path: Path, line: str) -> None:
    path = _write_lines(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(InputError, match="line 2 is not valid JSON"):
        load_text(str(path))


def test_a_number_beyond_floats_beside_a_text_is_no_harm(tmp_path: Path) -> None:
    path = _write_lines(tmp_path / "a.jsonl", '{"score": 1e999, "text": "a"}')
    assert load_text(str(path)).documents == ("a",)


@pytest.mark.parametrize("source", ["", " ", "x" * 300 + ".txt", "~nobody-of-this-name/a.txt", "a\0b.txt"])
def test_names_that_no_file_can_have_are_refused(source: str) -> None:
    with pytest.raises(InputError):
        load_text(source)


def test_a_dataset_that_breaks_off_is_refused_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": ', encoding="utf-8")
    with pytest.raises(InputError, match="cannot be"):
        load_text(str(tmp_path))
