"""A text that cannot be used is refused before torch is loaded."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qplan.calibration import check_text, files
from qplan.errors import InputError

CODE = "def add(a, b):\n    return a + b\n"
CHINESE = "今天天气很好。"
CHAT = [{"role": "user", "content": "write add"}, {"role": "assistant", "content": CODE}]


def lines(*records: Mapping[str, Any] | str) -> bytes:
    return "\n".join(one if isinstance(one, str) else json.dumps(one) for one in records).encode()


TAKEN = {
    "a.txt": CODE.encode(),
    "upper.TXT": CODE.encode(),
    "chinese.txt": CHINESE.encode(),
    "bom-crlf-nul.txt": b"\xef\xbb\xbf" + CODE.replace("\n", "\r\n").encode() + b"\0" * 50,
    "bom.jsonl": b"\xef\xbb\xbf" + b"\r\n".join([lines({"text": CODE})] * 3),
    "chat.jsonl": lines({"messages": CHAT}),
    "mixed.jsonl": lines({"text": CODE}, {"messages": CHAT}, {"content": CODE}),
    "blank-lines.jsonl": lines("", {"text": CODE}, "  ", ""),
    "some-empty.jsonl": lines({"text": ""}, {"text": CODE}),
    "surrogate.jsonl": rb'{"text": "a\ud83d"}',
    "half.jsonl": lines({"text": CODE, "other": [1, None]}),
}

REFUSED = {
    "empty.txt": (b"", "holds no text"),
    "white.txt": (b" \n" * 5000, "holds no text"),
    "bom-alone.txt": (b"\xef\xbb\xbf", "holds no text"),
    "gbk.txt": ((CHINESE * 900).encode("gbk"), "is not UTF-8 text: invalid .* at byte 0; convert it, e.g. with iconv"),
    "late.txt": (b"a" * 100_000 + b"\xe9 ", "at byte 100,000"),
    "utf16.txt": (CODE.encode("utf-16"), "begins like UTF-16; convert it, e.g. with iconv -f UTF-16 -t UTF-8"),
    "utf16le.txt": (
        CODE.encode("utf-16-le"),
        "full of zero bytes, as UTF-16 is; convert it, e.g. with iconv -f UTF-16LE",
    ),
    "random.txt": (bytes(range(256)) * 8, "random.txt is not text but a binary file, such as an archive"),
    "random.jsonl": (bytes(range(128, 256)) + bytes(range(128)), "line 1 is not text but a binary file"),
    "latin1.jsonl": (b'{"text": "caf\xe9"}', "line 1 is not UTF-8 text: .*GB18030"),
    "utf16.jsonl": (lines({"text": CODE}, {"text": CODE}).decode().encode("utf-16"), "line 1 .*UTF-16"),
    "empty.jsonl": (b"", "holds no text"),
    "empty-texts.jsonl": (lines({"text": ""}, {"text": " "}), "holds no text"),
    "sharegpt.jsonl": (lines({"conversations": CHAT}), "line 1 has none of the fields .*; it has conversations"),
    "alpaca.jsonl": (lines({"instruction": "a", "output": "b"}), "it has instruction, output"),
    "prompt.jsonl": (lines({"prompt": "a", "completion": "b"}), "it has prompt, completion"),
    "list.jsonl": (lines({"text": [CODE]}), "field 'text' holds a list, expected text"),
    "nan.jsonl": (b'{"text": NaN}', "field 'text' holds a float, expected text"),
    "null.jsonl": (
        lines({"text": CODE}, {"text": None}),
        "text is null in .*line 2; give it text",
    ),
    "array.jsonl": (json.dumps([{"text": CODE}]).encode(), "line 1 holds a JSON list"),
    "cut.jsonl": (lines({"text": CODE}, '{"text": "a'), "line 2 is not valid JSON"),
    "array.json": (json.dumps([{"text": CODE}]).encode(), r"extension '\.json' is not understood; use \.txt"),
    "notes.md": (CODE.encode(), r"extension '\.md' is not understood"),
    "code.py": (CODE.encode(), r"extension '\.py' is not understood"),
    "packed.jsonl.gz": (gzip.compress(CODE.encode()), r"extension '\.gz' is not understood"),
    "wiki.test.raw": (CODE.encode(), r"extension '\.raw' is not understood"),
    "packed.jsonl": (gzip.compress(lines({"text": CODE})), "line 1 is not text but a binary file, .*unpack it"),
    "not.parquet": (CODE.encode(), "is not a readable Parquet file"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_text_that_can_be_used_comes_in(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(TAKEN[name])
    check_text(str(tmp_path / name), "--calib")


@pytest.mark.parametrize("name", REFUSED)
def test_a_text_that_cannot_be_used_is_refused_with_what_is_the_matter(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        check_text(str(tmp_path / name), "--calib")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        check_text(str(tmp_path / "pipe.txt"))
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        check_text(str(tmp_path / "zero.txt"))
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="does not exist"):
        check_text(str(tmp_path / "gone.txt"))


def test_more_than_is_used_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_CHARACTERS", 100)
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a" * 100}, "not read, so not refused"))
    check_text(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.txt").write_bytes(b"a" * 399 + "é".encode() + b"\xff")
    check_text(str(tmp_path / "a.txt"))
    with (tmp_path / "sparse.txt").open("wb") as sparse:
        sparse.write(b"some text")
        sparse.truncate(10 << 30)
    check_text(str(tmp_path / "sparse.txt"))


def test_a_line_that_no_memory_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_LINE_BYTES", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a"}, {"text": "a" * (1 << 20)}))
    with pytest.raises(InputError, match="line 2 has more than 1 MiB"):
        check_text(str(tmp_path / "a.jsonl"))


def test_columns_of_parquet_files_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["one"]}), path)
    with pytest.raises(InputError, match="row 0 has none of the fields text, content, messages; it has body"):
        check_text(str(path))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(InputError, match="holds no text"):
        check_text(str(path))
    pq.write_table(pa.table({"text": ["one"]}), path)
    check_text(str(path))


def test_the_door_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"messages": CHAT}))
    script = (
        f"import sys; from qplan.calibration import check_text; check_text({str(tmp_path / 'a.jsonl')!r}); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
