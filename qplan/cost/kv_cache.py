"""MNN's KV cache: the ways to store it, and what it takes in RAM, to the byte that the engine allocates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files

from qplan.errors import InputError

_GROWTH = 64
"""Tokens for which the engine makes room beyond those that it holds, whenever the cache is full."""
_VALUE_BLOCK = 64
"""Tokens of values that are laid out together: MNN's block of flash attention."""
_TURBO_BLOCK = 32
"""Numbers of a head that TurboQuant rotates together; of a head that is no multiple of them it drops the rest."""
_FLASH = 8
"""What MNN adds to a mode for flash attention."""
_SCALE_BYTES, _SUM_BYTES = 8, 4


class KvMode(StrEnum):
    """How keys and values are stored; MNN's ``attention_mode`` is 8, for flash attention, and its number."""

    FLOAT = "float"
    K8 = "k8"
    """Keys as int8."""
    KV8 = "kv8"
    """Keys and values as int8."""
    KTQ4 = "ktq4"
    """Keys in 4 bits (TurboQuant: 32 numbers rotated, and rounded to 16 values)."""
    TQ4 = "tq4"
    """Keys and values in 4 bits."""
    KTQ3 = "ktq3"
    """Keys in 3 bits."""
    TQ3 = "tq3"
    """Keys and values in 3 bits."""

    @property
    def attention_mode(self) -> int:
        """The number in MNN's ``config.json``."""
        return _FLASH + _NUMBERS[self]

    @property
    def rotates(self) -> bool:
        """Whether it is TurboQuant."""
        return "tq" in self

    @property
    def key_bits(self) -> int:
        """Bits of a key; 0 for floats."""
        return 0 if self is KvMode.FLOAT else int(self[-1])

    @property
    def value_bits(self) -> int:
        """Bits of a value; 0 for floats."""
        return self.key_bits if self in (KvMode.KV8, KvMode.TQ4, KvMode.TQ3) else 0


_NUMBERS = {
    KvMode.FLOAT: 0,
    KvMode.K8: 1,
    KvMode.KV8: 2,
    KvMode.KTQ3: 3,
    KvMode.TQ3: 4,
    KvMode.KTQ4: 5,
    KvMode.TQ4: 6,
}


@dataclass(frozen=True)
class KvShape:
    """What a model caches of a token."""

    layers: int
    """Layers that attend to what came before."""
    heads: int
    """Heads of keys in a layer, and as many of values."""
    head_dim: int


@dataclass(frozen=True)
class KvBytes:
    """RAM of a cache."""

    stored: int
    """Keys and values with their scales: the buffers that MNN can map to files."""
    sums: int
    """What int8 keeps beside them: sums and largest keys."""

    @property
    def total(self) -> int:
        """Both."""
        return self.stored + self.sums


@dataclass(frozen=True)
class KvLayout:
    """How a processor's kernels pack keys and values."""

    float_bytes: int
    float_rows: int
    """Rows of a float matrix side by side."""
    float_columns: int
    """Columns of it side by side."""
    int8_rows: int
    int8_columns: int

    def bytes(self, mode: KvMode, shape: KvShape, tokens: int) -> KvBytes:
        """RAM of the cache once a prompt of ``tokens`` is in it; no sequence of as many takes more."""
        room = tokens + _GROWTH
        blocks = -(-room // _VALUE_BLOCK)
        keys, key_sums = self._key_bytes(mode, shape.head_dim, room)
        values, value_sums = self._value_bytes(mode, shape.head_dim, blocks, room)
        heads = shape.layers * shape.heads
        return KvBytes(heads * (keys + values), heads * (key_sums + value_sums))

    def _key_bytes(self, mode: KvMode, width: int, room: int) -> tuple[int, int]:
        """Bytes of one head's keys, and of their sums."""
        if mode.rotates:
            return room * _turbo_bytes(mode.key_bits, width), 0
        if mode is KvMode.FLOAT:
            return _up(room, self.float_rows) * _up(width, self.float_columns) * self.float_bytes, 0
        rows = _up(room, self.int8_rows)
        return rows * (_up(width, self.int8_columns) + _SCALE_BYTES), _SUM_BYTES * (rows + width)

    def _value_bytes(self, mode: KvMode, width: int, blocks: int, room: int) -> tuple[int, int]:
        """Bytes of one head's values, and of their sums."""
        bits = mode.value_bits
        if not bits:
            rows, columns = _up(width, self.float_rows), _up(_VALUE_BLOCK, self.float_columns)
            return blocks * rows * columns * self.float_bytes, 0
        if mode.rotates:
            return room * _turbo_bytes(bits, width), 0
        rows = _up(width, self.int8_rows)
        stored = rows * (_up(_VALUE_BLOCK, self.int8_columns) + _SCALE_BYTES)
        return blocks * stored, blocks * rows * _SUM_BYTES


@dataclass(frozen=True)
class KvTarget:
    """What a target can do with a KV cache."""

    layouts: tuple[KvLayout, ...]
    """Of its processors."""
    modes: tuple[KvMode, ...]
    """Modes that they compute right."""

    def bytes(self, mode: KvMode, shape: KvShape, tokens: int) -> KvBytes:
        """RAM on the processor that takes most, see `KvLayout.bytes`."""
        return max((layout.bytes(mode, shape, tokens) for layout in self.layouts), key=lambda found: found.total)

    def legal(self, mode: KvMode, shape: KvShape) -> bool:
        """Whether a model's cache can be stored so."""
        return mode in self.modes and (not mode.rotates or shape.head_dim % _TURBO_BLOCK == 0)

    def defect(self, mode: KvMode, shape: KvShape, target: str) -> str | None:
        """Why it cannot; None if it can."""
        if self.legal(mode, shape):
            return None
        if mode in self.modes:
            return f"heads of {shape.head_dim} are no multiple of {_TURBO_BLOCK}, and TurboQuant drops the rest"
        return f"{target} computes it wrong; it is right with {', '.join(self.modes)}"


@cache
def kv_target(target: str, precision: str) -> KvTarget:
    """What a target can do with a KV cache under MNN's ``precision``.

    Raises:
        InputError: nobody knows how it lays the cache out.
    """
    known = json.loads((files("qplan.cost") / "kv_cache.json").read_text(encoding="utf-8"))["targets"]
    if target not in known:
        msg = f"--context needs the layout of the KV cache on {target}, which is not known; use {', '.join(known)}"
        raise InputError(msg)
    return _parse(known, known[target], precision)


def _parse(known: Mapping[str, Mapping[str, object]], value: Mapping[str, object], precision: str) -> KvTarget:
    like = value.get("like")
    if isinstance(like, list):
        parts = [_parse(known, known[name], precision) for name in like]
        modes = tuple(mode for mode in parts[0].modes if all(mode in part.modes for part in parts))
        return KvTarget(tuple(layout for part in parts for layout in part.layouts), modes)
    found = value["low" if precision == "low" else "high"]
    if not isinstance(found, Mapping):
        msg = f"kv_cache.json: {found!r} is no layout"
        raise InputError(msg)
    layout = {key: int(number) for key, number in found.items() if key != "modes"}
    return KvTarget((KvLayout(**layout),), tuple(KvMode(mode) for mode in found["modes"]))


def _turbo_bytes(bits: int, width: int) -> int:
    """Bytes of one token in one head: codes, and a scale in fp16 for each block."""
    return width // _TURBO_BLOCK * (_TURBO_BLOCK * bits // 8 + 2)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
