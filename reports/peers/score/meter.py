"""Processor time and memory of a piece of work. Runs in the peer's environment, without qplan."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from reports.peers.score.job import Spent

T = TypeVar("T")

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def spent_on(work: Callable[[], T]) -> tuple[T, Spent]:
    """Do a piece of work; returns its result with its time and memory."""
    before = _reset_peak()
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    spent = time.process_time() - processor, time.perf_counter() - wall
    after = _resident("VmHWM")
    return result, Spent(*spent, None if before is None or after is None else after - before)


def seconds_of(work: Callable[[], object], *, warm: bool = True) -> float:
    """Processor seconds of a piece of work, done once before to warm up if ``warm``."""
    if warm:
        work()
    before = time.process_time()
    work()
    return time.process_time() - before


def _reset_peak() -> float | None:
    if not _RESET.exists():
        return None
    gc.collect()
    # what was freed before would hide what is needed now
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text("5", encoding="ascii")
    return _resident("VmRSS")


def _resident(field: str) -> float | None:
    if not _STATUS.exists():
        return None
    match = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    return None if match is None else int(match[1]) / 1024
