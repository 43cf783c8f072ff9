"""Ways to damage a file: bytes, JSON values, tables, arrays, and what is no file at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from reports.faults.fuzz.values import JSON, LONG_NUMBER, NUMBERS, TEXTS


@dataclass(frozen=True)
class Damage:
    """One change of one file."""

    file: str
    """Relative to the folder of the case."""
    how: str
    apply: Callable[[Path], None]
    """Changes the file at a path."""


def damages(file: str) -> st.SearchStrategy[Damage]:
    """Ways to damage a file, by its name.

    Args:
        file: relative to the folder of the case.
    """
    ways = [_bits, _cuts, _zeros, _inserts, _kinds]
    if file.endswith((".json", ".jsonl")):
        ways = [_bits, _cuts, _zeros, _inserts, _kinds, *[_values] * 5, _raw_json]
    elif file.endswith(".parquet"):
        ways += [_columns, _metadata]
    elif file.endswith(".safetensors"):
        ways += [_arrays, _headers]
    return st.sampled_from(ways).flatmap(lambda way: way()).map(lambda found: Damage(file, *found))


Way = tuple[str, Callable[[Path], None]]
"""What is done, and a function that does it."""


def _on_bytes(how: str, change: Callable[[bytearray], None]) -> Way:
    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return how, apply


_PLACES = st.one_of(st.floats(0, 1, exclude_max=True), st.floats(0, 0.02), st.floats(0.97, 1, exclude_max=True))
"""Where in a file: anywhere, and more often where headers and footers are."""


def _bits() -> st.SearchStrategy[Way]:
    def flip(place: float, bit: int) -> Way:
        def change(data: bytearray) -> None:
            if data:
                data[int(place * len(data))] ^= 1 << bit

        return _on_bytes(f"bit {bit} flipped at {place:.4f}", change)

    return st.builds(flip, _PLACES, st.integers(0, 7))


def _cuts() -> st.SearchStrategy[Way]:
    def cut(place: float) -> Way:
        return _on_bytes(f"cut at {place:.4f}", lambda data: data.__delitem__(slice(int(place * len(data)), None)))

    return st.builds(cut, _PLACES)


def _zeros() -> st.SearchStrategy[Way]:
    def zero(place: float, count: int) -> Way:
        def change(data: bytearray) -> None:
            at = int(place * len(data))
            data[at : at + count] = bytes(len(data[at : at + count]))

        return _on_bytes(f"{count} bytes zeroed at {place:.4f}", change)

    return st.builds(zero, _PLACES, st.sampled_from([1, 8, 40, 4096, 1 << 20]))


def _inserts() -> st.SearchStrategy[Way]:
    def insert(place: float, added: bytes) -> Way:
        def change(data: bytearray) -> None:
            at = int(place * len(data))
            data[at:at] = added

        return _on_bytes(f"{added[:20]!r} inserted at {place:.4f}", change)

    return st.builds(insert, _PLACES, st.one_of(st.binary(min_size=1, max_size=12), st.just(b"\xef\xbb\xbf")))


def _kinds() -> st.SearchStrategy[Way]:
    def replace(make: Callable[[Path], None]) -> Callable[[Path], None]:
        def apply(path: Path) -> None:
            path.unlink()
            make(path)

        return apply

    return st.sampled_from([(how, replace(make)) for how, make in _KINDS.items()])


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(10_000_000_000)


def _git_lfs(path: Path) -> None:
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 531504\n")


_KINDS: dict[str, Callable[[Path], None]] = {
    "removed": lambda path: None,
    "empty": lambda path: path.write_bytes(b"") and None,
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
    "a link to its folder": lambda path: path.symlink_to("."),
    "a sparse file of 10 GB": _sparse,
    "a Git LFS pointer": _git_lfs,
    "another file": lambda path: shutil.copyfile(__file__, path) and None,
    "[] nested 100,000 times": lambda path: path.write_text("[" * 100_000 + "]" * 100_000) and None,
    "unreadable": lambda path: (path.touch(), path.chmod(0))[0],
}


def _raw_json() -> st.SearchStrategy[Way]:
    """Texts that take the place of a whole file, or of a number in it."""

    def number(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        at = next((i for i, c in enumerate(text) if c.isdigit() and text[i - 1] in " :["), None)
        if at is not None:
            path.write_text(text[:at] + LONG_NUMBER + text[at:])

    whole = st.one_of(JSON, st.just([]), st.just({})).map(
        lambda value: (f"all of it {_short(value)}", lambda path: path.write_text(json.dumps(value)) and None)
    )
    return st.one_of(whole, st.just(("a number of 5,000 digits", number)))


def _values() -> st.SearchStrategy[Way]:
    """A value somewhere in the file replaced, removed, or added; in a jsonl, in one of its lines."""

    def change(steps: list[int], action: str, value: Any) -> Way:
        def apply(path: Path) -> None:
            try:
                lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
                at = steps[-1] % len(lines)
                document = json.loads(lines[at])
                lines[at] = json.dumps(_changed(document, steps, action, value), ensure_ascii=False)
                path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
            except (OSError, ValueError, ZeroDivisionError):  # damaged before
                return

        return f"value {steps} {action} {_short(value) if action != 'removed' else ''}", apply

    actions = st.sampled_from(["replaced", "replaced", "replaced", "removed", "added"])
    return st.builds(change, st.lists(st.integers(0, 60), min_size=1, max_size=6), actions, JSON)


def _changed(document: Any, steps: list[int], action: str, value: Any) -> Any:
    """Walk down by the steps, each modulo what there is, and act on the last place."""
    if not isinstance(document, dict | list) or not document:
        return value
    holder: Any = document
    for depth, step in enumerate(steps):
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[step % len(keys)]
        below = holder[key]
        if isinstance(below, dict | list) and below and depth < len(steps) - 1:
            holder = below
            continue
        if action == "removed":
            del holder[key]
        elif action == "added" and isinstance(holder, dict):
            holder[str(value)[:20]] = value
        elif action == "added":
            holder.append(value)
        else:
            holder[key] = value
        break
    return document


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) < 40 else text[:37] + "..."


def _columns() -> st.SearchStrategy[Way]:
    """A column of a table removed, retyped, or a value in it changed; rows removed or doubled."""

    def change(column: int, row: int, action: str, value: Any) -> Way:
        def apply(path: Path) -> None:
            table = pq.read_table(path)
            name = table.column_names[column % table.num_columns]
            at = row % max(1, table.num_rows)
            if action == "removed":
                table = table.drop_columns([name])
            elif action == "row":
                table = pa.concat_tables([table.slice(0, at), table.slice(at + 1)])
            elif action == "twice":
                table = pa.concat_tables([table, table.slice(at, 1)])
            elif action == "null":
                table = table.set_column(table.column_names.index(name), name, pa.nulls(table.num_rows))
            elif action == "text":
                texts = [str(item) for item in table[name].to_pylist()]
                table = table.set_column(table.column_names.index(name), name, pa.array(texts))
            else:
                values = table[name].to_pylist()
                values[at] = value if isinstance(values[at], float) else values[at - 1]
                table = table.set_column(table.column_names.index(name), name, pa.array(values))
            pq.write_table(table, path)

        return f"column {column} {action} {value if action == 'value' else ''} row {row}", apply

    actions = st.sampled_from(["removed", "row", "twice", "null", "text", "value", "value"])
    return st.builds(change, st.integers(0, 20), st.integers(0, 5000), actions, st.floats())


def _metadata() -> st.SearchStrategy[Way]:
    """What a table says about itself, changed."""

    def change(steps: list[int], action: str, value: Any) -> Way:
        def apply(path: Path) -> None:
            table = pq.read_table(path)
            metadata = json.loads(table.schema.metadata[b"qplan"])
            text = json.dumps(_changed(metadata, steps, action, value))
            pq.write_table(table.replace_schema_metadata({"qplan": text}), path)

        return f"metadata {steps} {action} {_short(value)}", apply

    actions = st.sampled_from(["replaced", "replaced", "removed", "added"])
    return st.builds(change, st.lists(st.integers(0, 60), min_size=1, max_size=5), actions, JSON)


def _arrays() -> st.SearchStrategy[Way]:
    """An array of a safetensors file removed, emptied, retyped, reshaped, or with a value that is no number."""

    def change(which: int, action: str, value: float) -> Way:
        def apply(path: Path) -> None:
            arrays = load_file(path)
            name = sorted(arrays)[which % len(arrays)]
            array = arrays[name].copy()
            if action == "removed":
                del arrays[name]
            elif action == "renamed":
                arrays[f"{name}.other"] = arrays.pop(name)
            elif action == "flat":
                arrays[name] = array.reshape(-1)
            elif action == "narrow":
                arrays[name] = np.ascontiguousarray(array[: max(1, len(array) // 2)])
            elif action == "float64":
                arrays[name] = array.astype(np.float64)
            else:
                with np.errstate(all="ignore"):
                    array.reshape(-1)[:1] = np.asarray(value).astype(array.dtype)
                arrays[name] = array
            save_file(arrays, path)

        return f"array {which} {action} {value if action == 'value' else ''}", apply

    actions = st.sampled_from(["removed", "renamed", "flat", "narrow", "float64", "value", "value"])
    return st.builds(change, st.integers(0, 40), actions, st.sampled_from([np.nan, np.inf, -1e30, 1e30, 0.0, 65504.0]))


def _headers() -> st.SearchStrategy[Way]:
    """The header of a safetensors file, changed: offsets, shapes, types, names, its length."""

    def change(steps: list[int], action: str, value: Any, size: int | None) -> Way:
        def apply(path: Path) -> None:
            data = path.read_bytes()
            length = int.from_bytes(data[:8], "little")
            header = json.dumps(_changed(json.loads(data[8 : 8 + length]), steps, action, value)).encode()
            path.write_bytes((len(header) if size is None else size).to_bytes(8, "little") + header + data[8 + length :])

        return f"header {steps} {action} {_short(value)} of size {size}", apply

    actions = st.sampled_from(["replaced", "replaced", "removed", "added"])
    sizes = st.sampled_from([None, None, None, 0, 1, 1 << 40, (1 << 64) - 1])
    return st.builds(change, st.lists(st.integers(0, 60), min_size=1, max_size=3), actions, JSON, sizes)
