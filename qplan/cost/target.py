"""Where a plan runs: which formats are legal there and what they cost in RAM. Read from data files with sources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.tensors import TensorSpec

DEFAULT_TARGET = "cpu-x86"

_FLOAT_BYTES = 4
"""Under memory normal every weight is expanded to fp32 at load."""


@dataclass(frozen=True)
class Target:
    """An engine's back end on a kind of processor."""

    name: str
    about: str
    measured: bool
    """Whether qplan's authors ran it; otherwise `source` says what the figures rest on."""
    source: str
    widths: tuple[int, ...]
    """Widths in bits that the back end computes correctly."""
    symmetric_only: bool
    """Whether integers must have no zero points."""
    ram_bits: Mapping[int, int]
    """Bits of a weight in RAM under memory low, by its stored width."""
    ram_block_bytes: Mapping[int, int]
    """Bytes in RAM for the scale of one block, by stored width; floats have none."""
    runs_like: Mapping[int, int]
    """By width, another one that takes the same time."""

    def legal(self, spec: TensorSpec, fmt: QuantFormat) -> bool:
        """Whether a tensor may have a format on this target."""
        symmetric = fmt.symmetric or fmt.is_float or not self.symmetric_only
        return fmt.bits in self.widths and symmetric and spec.allows(fmt)

    def ram_bytes(self, spec: TensorSpec, fmt: QuantFormat, memory: str = "low") -> int:
        """Bytes of a tensor's weights in RAM after loading.

        Raises:
            InputError: a width that the target does not know.
        """
        if memory != "low":
            return _FLOAT_BYTES * spec.weights
        if fmt.bits not in self.ram_bits:
            msg = f"{spec.name}: {self.name} has no {fmt}; its widths are {', '.join(map(str, self.widths))}"
            raise InputError(msg)
        codes = -(-spec.weights * self.ram_bits[fmt.bits] // 8)
        if fmt.is_float:
            return codes
        blocks = spec.out_features * (spec.in_features // fmt.block_size(spec.in_features))
        return codes + blocks * self.ram_block_bytes[fmt.bits]

    def timed_as(self, fmt: QuantFormat) -> QuantFormat:
        """The format whose time a format takes: on x86 int3 runs like int8 with the same block."""
        return replace(fmt, bits=self.runs_like.get(fmt.bits, fmt.bits))


@cache
def targets() -> dict[str, Target]:
    """All targets by name."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in _folder_entries()]
    return {target.name: target for target in map(_parse, found)}


def target_names() -> tuple[str, ...]:
    """Names of all targets, read from the names of their files: help and completion wait for them."""
    return tuple(entry.name.removesuffix(".json") for entry in _folder_entries())


def find_target(name: str) -> Target:
    """Look a target up.

    Raises:
        InputError: no such target.
    """
    known = targets()
    if name not in known:
        have = ", ".join(f"{t.name}{'' if t.measured else ' (not measured)'}" for t in known.values())
        msg = f"target {name!r} is unknown; use one of {have}"
        raise InputError(msg)
    return known[name]


def _folder_entries() -> list[Traversable]:
    folder = files("qplan.cost") / "targets"
    return sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda entry: entry.name)


def _parse(value: Mapping[str, Any]) -> Target:
    def by_bits(key: str) -> dict[int, int]:
        return {int(bits): int(number) for bits, number in value[key].items()}

    return Target(
        name=str(value["name"]),
        about=str(value["about"]),
        measured=bool(value["measured"]),
        source=str(value["source"]),
        widths=tuple(value["widths"]),
        symmetric_only=bool(value["symmetric_only"]),
        ram_bits=by_bits("ram_bits"),
        ram_block_bytes=by_bits("ram_block_bytes"),
        runs_like=by_bits("runs_like"),
    )
