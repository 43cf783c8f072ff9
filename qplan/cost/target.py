"""Where a plan runs: its arithmetic, the formats that are right there, what they cost in RAM and in time.

Read from data files with sources.
"""

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
from qplan.settings import Arithmetic, DynamicOption, Precision
from qplan.tensors import TensorSpec

DEFAULT_TARGET = "cpu-x86"

FORMER_NAMES = {"cpu-arm": "phone"}
"""Targets of earlier versions, which plans may name, and what stands for them now."""

_FLOAT_BITS = 32
"""Under memory normal every weight is expanded to fp32 at load."""


_LOOKUP_BLOCK_BYTES = 8
"""Of a tied head, for each block: the embedding's lookups keep scales and zero points of their own, in fp32. Measured
as growth of resident memory, to 1 %, on a head of 16,384 x 1,024 in blocks of 64 and by whole rows. An embedding of
integers in a file of its own keeps the same; its rows are read from the file when they are looked up."""


@dataclass(frozen=True)
class Speed:
    """Relative time of a matrix, linear in its weights and blocks; 1 is about a weight of int8."""

    per_weight: float
    per_block: float = 0.0
    by_rows: float | None = None
    """Per weight where a block is the whole row; None if such a row is a long block."""

    def of(self, spec: TensorSpec, fmt: QuantFormat) -> float:
        """Relative time of a tensor in a format."""
        if self.by_rows is not None and not fmt.is_float and not fmt.block:
            return self.by_rows * spec.weights
        return self.per_weight * spec.weights + self.per_block * _blocks(spec, fmt)


@dataclass(frozen=True)
class BlockScales:
    """What a block costs besides, where its activations have a scale of their own: ``dynamic_option`` 2."""

    ram_bytes: int
    """In RAM, for the sum of its weights."""
    decode: float
    """Relative time of a decoded token, see `Speed`."""
    prefill: float
    """The same of a prefill."""


@dataclass(frozen=True)
class Target:
    """An engine's back end on a kind of processor."""

    name: str
    about: str
    measured: bool
    """Whether qplan's authors ran it, on hardware or emulated; otherwise `source` says what the figures rest on."""
    source: str
    widths: tuple[int, ...]
    """Widths in bits that the back end computes correctly."""
    symmetric_only: bool
    """Whether integers must have no zero points."""
    block_multiple: int
    """Blocks that are no multiple of it crash or garble; whole rows are always right."""
    least_block: int
    """The smallest block that is right."""
    ram_bits: Mapping[int, int]
    """Bits of an integer weight in RAM under memory low, by its stored width."""
    float_bits: Mapping[Precision, int]
    """Bits of a float weight in RAM under memory low, by MNN's ``precision``."""
    ram_block_bytes: Mapping[int, int]
    """Bytes in RAM for the scale of one block, by stored width; floats have none."""
    runs_like: Mapping[int, int]
    """By width, another one that takes the same time."""
    decode: Mapping[int, Speed]
    """Relative time of a decoded token under memory low and precision low, by stored width."""
    prefill: Mapping[int, Speed]
    """The same of a prefill."""
    block_scales: BlockScales
    """What is added for every block under ``dynamic_option`` 2."""
    adds_in_int16: bool
    """Whether two products of int8 are added in int16, which -128 x -128 twice overflows: ARM without dot product."""
    speeds: str
    """What the relative times rest on. Where machines differ, a format has that of the one on which it gains least."""
    why_not: Mapping[int, str]
    """By width, why it is not among `widths`."""
    arithmetics: Mapping[Precision, Arithmetic]
    """What the back end computes with under MNN's ``precision``."""
    precision: Precision = "low"
    """The one that is meant."""
    dynamic_option: DynamicOption = 0
    """The setting of int8 activations that is meant."""

    def __str__(self) -> str:
        """Its name, with a precision other than low."""
        return self.name if self.precision == "low" else f"{self.name}, precision {self.precision}"

    @property
    def arithmetic(self) -> Arithmetic:
        """What the back end computes with."""
        return self.arithmetics[self.precision]

    def at(self, precision: Precision) -> Target:
        """The same target under another ``precision``."""
        return replace(self, precision=precision)

    def scaling(self, option: DynamicOption) -> Target:
        """The same target under another ``dynamic_option``."""
        return replace(self, dynamic_option=option)

    def legal(self, spec: TensorSpec, fmt: QuantFormat) -> bool:
        """Whether a tensor may have a format on this target."""
        return self.defect(spec, fmt) is None

    def defect(self, spec: TensorSpec, fmt: QuantFormat) -> str | None:
        """Why a tensor must not have a format on this target; None if it may."""
        if spec.is_embedding:  # the same lookups on all of them
            return None if spec.allows(fmt) else f"tokens cannot be looked up in {spec.name} in {fmt}"
        if fmt.bits not in self.widths:
            why = self.why_not.get(fmt.bits, f"its widths are {', '.join(map(str, self.widths))}")
            return f"{self.name} has no {fmt}: {why}"
        if self.symmetric_only and not (fmt.symmetric or fmt.is_float):
            return f"{self.name} has no {fmt}: its integers have no zero points; use {fmt.name}-sym"
        if fmt.block and (fmt.block % self.block_multiple or fmt.block < self.least_block):
            return (
                f"{self.name} is not right with blocks of {fmt.block}; use whole rows (int{fmt.bits}-b0) or multiples "
                f"of {self.block_multiple} from {self.least_block} on"
            )
        return None if spec.allows(fmt) else f"the engine cannot compute {spec.name} in {fmt}"

    def ram_bytes(self, spec: TensorSpec, fmt: QuantFormat, memory: str = "low") -> int:
        """Bytes of a tensor's weights in RAM after loading.

        Raises:
            InputError: a width that the target does not know.
        """
        if spec.is_embedding:
            return _LOOKUP_BLOCK_BYTES * _blocks(spec, fmt)
        if memory != "low":
            return _FLOAT_BITS // 8 * spec.weights
        self._check_width(spec, fmt)
        if fmt.is_float:
            return self.float_bits[self.precision] // 8 * spec.weights
        codes = -(-spec.weights * self.ram_bits[fmt.bits] // 8)
        more = self.block_scales.ram_bytes if self._scales_blocks(fmt) else 0
        more += _LOOKUP_BLOCK_BYTES if spec.tied else 0
        return codes + _blocks(spec, fmt) * (self.ram_block_bytes[fmt.bits] + more)

    def decode_bytes(self, spec: TensorSpec, fmt: QuantFormat, memory: str = "low") -> float:
        """Relative time that a tensor takes of a decoded token.

        In bytes of int8 weights by whole rows that would take as long to read: decoding waits for memory.

        Raises:
            InputError: a width that the target does not know.
        """
        if spec.is_embedding:
            return 0.0  # one row of it
        if memory != "low":
            return _FLOAT_BITS / 8 * spec.weights
        return self._time(self.decode, self.block_scales.decode, spec, fmt)

    def prefill_work(self, spec: TensorSpec, fmt: QuantFormat, memory: str = "low") -> float:
        """Relative time that a tensor takes of a prefill, in weights of int8.

        Raises:
            InputError: a width that the target does not know.
        """
        if spec.is_embedding:
            return 0.0
        if memory != "low":
            return float(spec.weights)
        return self._time(self.prefill, self.block_scales.prefill, spec, fmt)

    def timed_as(self, fmt: QuantFormat) -> QuantFormat:
        """The format whose time a format takes: on x86 int3 runs like int8 with the same block."""
        return replace(fmt, bits=self.runs_like.get(fmt.bits, fmt.bits))

    def _time(self, speeds: Mapping[int, Speed], scales: float, spec: TensorSpec, fmt: QuantFormat) -> float:
        """Relative time under memory low; under memory normal all formats take the same."""
        self._check_width(spec, fmt)
        # wider floats take as many times the bytes, and as many times fewer fit a register
        wider = self.float_bits[self.precision] / self.float_bits["low"] if fmt.is_float else 1.0
        more = scales * _blocks(spec, fmt) if self._scales_blocks(fmt) else 0.0
        return wider * speeds[fmt.bits].of(spec, fmt) + more

    def _scales_blocks(self, fmt: QuantFormat) -> bool:
        """Whether activations have a scale for each block; one for the whole row costs nothing more."""
        return self.dynamic_option != 0 and fmt.block != 0

    def _check_width(self, spec: TensorSpec, fmt: QuantFormat) -> None:
        if fmt.bits not in self.widths:
            msg = f"{spec.name}: {self.name} has no {fmt}; its widths are {', '.join(map(str, self.widths))}"
            raise InputError(msg)


def _blocks(spec: TensorSpec, fmt: QuantFormat) -> int:
    return 0 if fmt.is_float else spec.out_features * (spec.in_features // fmt.block_size(spec.in_features))


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
    name = FORMER_NAMES.get(name, name)
    if name not in known:
        have = ", ".join(f"{t.name}{'' if t.measured else ' (not measured)'}" for t in known.values())
        msg = f"target {name!r} is unknown; use one of {have}"
        raise InputError(msg)
    return known[name]


def _folder_entries() -> list[Traversable]:
    folder = files("qplan.cost") / "targets"
    return sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda entry: entry.name)


def _parse(value: Mapping[str, Any]) -> Target:
    def by_bits(key: str) -> dict[int, Any]:
        return {int(bits): given for bits, given in value[key].items()}

    def speeds(key: str) -> dict[int, Speed]:
        return {bits: Speed(*map(float, given)) for bits, given in by_bits(key).items()}

    return Target(
        name=str(value["name"]),
        about=str(value["about"]),
        measured=bool(value["measured"]),
        source=str(value["source"]),
        widths=tuple(value["widths"]),
        symmetric_only=bool(value["symmetric_only"]),
        block_multiple=int(value["block_multiple"]),
        least_block=int(value["least_block"]),
        ram_bits=by_bits("ram_bits"),
        float_bits=dict(value["float_bits"]),
        ram_block_bytes=by_bits("ram_block_bytes"),
        runs_like=by_bits("runs_like"),
        decode=speeds("decode"),
        prefill=speeds("prefill"),
        block_scales=BlockScales(**value["block_scales"]),
        adds_in_int16=bool(value.get("adds_in_int16", False)),
        speeds=str(value["speeds"]),
        why_not=by_bits("why_not"),
        arithmetics=dict(value["arithmetics"]),
    )
