"""Measures in a few seconds what this machine does per second, on the parts that an analysis consists of."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from qplan.artifact import free_bytes, writing
from qplan.cost.free import existing, free_memory
from qplan.cost.work import Machine
from qplan.formats import DEFAULT_FORMATS
from qplan.rounding.curvature import Curvature
from qplan.rounding.rounder import alike, one_thread, round_widths
from qplan.scratch import Scratch

_TOKENS, _WIDTH, _ROUNDED = 1024, 1024, 1024
_FEW, _MANY = 8, 128
"""Rows that are rounded, to tell what each row takes from what each column does."""
_FILE_BYTES, _LEAST_BYTES = 64 << 20, 1 << 20
"""To write and read, or a quarter of what is free, but no less than so much."""
_LEAST_S, _MOST_REPEATS = 0.25, 12


Clock = Callable[[], float]


def measure_machine(folder: Path, clock: Clock = time.perf_counter) -> Machine:
    """Measure this machine.

    Args:
        folder: the run folder, whether or not it is there: disks differ.
        clock: seconds on the wall, or of this process on the processors where others keep these busy.
    """

    def took(work: Callable[[], object]) -> float:
        return _seconds(work, clock)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(_TOKENS, _WIDTH, generator=generator)
    weight = torch.randn(2 * _WIDTH, _WIDTH, generator=generator)
    operations = 2.0 * weight.numel() * _TOKENS
    products = operations / took(lambda: inputs @ weight.T)
    half = operations / took(lambda: inputs.bfloat16() @ weight.bfloat16().T)
    value = torch.randn(4 << 20, generator=generator)
    values = 3.0 * value.numel() / took(lambda: functional.silu(value).mul_(value))
    with one_thread():
        factor, roundings, steps = _rounding(inputs, weight, products / torch.get_num_threads(), clock)
    read, written = _disk(existing(folder), clock)
    return Machine(
        processors=torch.get_num_threads(),
        flops=products,
        bf16_flops=half,
        factor_flops=factor,
        values=values,
        roundings=roundings,
        steps=steps,
        read=read,
        written=written,
        memory_bytes=free_memory(),
        disk_bytes=free_bytes(folder),
    )


def _rounding(inputs: torch.Tensor, weight: torch.Tensor, flops: float, clock: Clock) -> tuple[float, float, float]:
    """Operations of factoring, and roundings and columns, per second."""
    moments = inputs.T @ inputs / len(inputs)
    factoring = _seconds(lambda: Curvature(moments).ordered(_WIDTH), clock)
    formats = [fmt for fmt in DEFAULT_FORMATS if not fmt.is_float]
    kinds = len(alike(formats))
    small = moments[:_ROUNDED, :_ROUNDED].contiguous()
    curvature = Curvature(small)

    def took(rows: int, *, warm: bool) -> float:
        chosen = weight[:rows, :_ROUNDED].contiguous()
        seconds = _seconds(lambda: round_widths(chosen, formats, "auto", curvature, small), clock, warm=warm)
        return seconds - 13.0 * _ROUNDED**2 * rows * len(formats) / flops

    few, many = took(_FEW, warm=False), took(_MANY, warm=True)
    each = max((many - few) / ((_MANY - _FEW) * _ROUNDED * len(formats)), 1e-12)
    column = max(few / _ROUNDED - each * _FEW * len(formats), 1e-9) / kinds
    return _WIDTH**3 / 3 / factoring, 1 / each, 1 / column


def _disk(folder: Path, clock: Clock) -> tuple[float, float]:
    """Bytes per second that are read and turned into float32, and written.

    Raises:
        InputError: nothing can be written there.
        StorageError: there is next to no room.
    """
    size = min(_FILE_BYTES, max(_LEAST_BYTES, free_bytes(folder) // 4))
    data = np.random.default_rng(0).integers(0, 2**15, size // 2, dtype=np.int16)
    with writing(folder, need=size), Scratch("disk", beside=folder / "calibration") as scratch:
        path = scratch / "data"
        start = clock()
        with path.open("wb") as file:
            file.write(data.tobytes())
            file.flush()
            os.fsync(file.fileno())
        written = size / max(clock() - start, 1e-9)
        read = size / _seconds(
            lambda: torch.from_numpy(np.fromfile(path, dtype=np.int16)).view(torch.bfloat16).float(), clock
        )
    return read, written


def _seconds(work: Callable[[], object], clock: Clock, *, warm: bool = False) -> float:
    """Mean time of a few repeats, the first of which only warms up unless that was done.

    Not the least: what else this machine does, it will do during the work as well.
    """
    if not warm:
        work()
    start, repeats = clock(), 0
    while repeats == 0 or (clock() - start < _LEAST_S and repeats < _MOST_REPEATS):
        work()
        repeats += 1
    return (clock() - start) / repeats
