"""Ways to damage a file: its bytes, what it holds, and what is no file at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from reports.faults.fuzz.array_damage import arrays, columns, headers, metadata_values
from reports.faults.fuzz.json_damage import raw_json, values
from reports.faults.fuzz.way import Change, Way


@dataclass(frozen=True)
class Damage:
    """One change of one file."""

    file: str
    """Relative to the folder of the case."""
    how: str
    apply: Change


def damages(file: str) -> st.SearchStrategy[Damage]:
    """Ways to damage a file, by its name.

    Args:
        file: relative to the folder of the case.
    """
    ways = [_bits, _cuts, _zeros, _inserts, _kinds]
    if file.endswith((".json", ".jsonl")):
        ways = [_bits, _cuts, _zeros, _inserts, _kinds, *[values] * 5, raw_json]
    elif file.endswith(".parquet"):
        ways += [columns, metadata_values]
    elif file.endswith(".safetensors"):
        ways += [arrays, headers]
    return st.sampled_from(ways).flatmap(lambda way: way()).map(lambda found: Damage(file, *found))


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
    def replace(make: Change) -> Change:
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


_KINDS: dict[str, Change] = {
    "removed": lambda _: None,
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
    "a link to its folder": lambda path: path.symlink_to("."),
    "a sparse file of 10 GB": _sparse,
    "a Git LFS pointer": _git_lfs,
    "another file": lambda path: shutil.copyfile(__file__, path),
    "[] nested 100,000 times": lambda path: path.write_text("[" * 100_000 + "]" * 100_000),
    "unreadable": lambda path: path.touch(mode=0),
}

ABSENT = frozenset({"removed"})
"""Where a file is there no more: a run without it has other answers, e.g. that nothing was verified."""
