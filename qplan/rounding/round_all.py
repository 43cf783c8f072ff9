"""Rounds every tensor in every format before they are needed, several at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import islice

from qplan.formats import QuantFormat
from qplan.rounding import StoredTensor
from qplan.rounding.round_tasks import RoundTensors, by_tensor
from qplan.rounding.rounder import Rounder, one_thread
from qplan.settings import Progress
from qplan.spread.work import Task, Workers


def default_jobs() -> int:
    """One per processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def round_all(
    rounder: Rounder,
    menu: Mapping[str, Sequence[QuantFormat]],
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> None:
    """Fill a rounder's cache; tensors that it holds already are left as they are.

    Every tensor is rounded on one thread, so the integers do not depend on the number of jobs.

    Args:
        rounder: a rounder with a cache; without one, or with ``rtn``, there is nothing to gain and nothing is done.
        menu: formats by tensor name; tensors that share an input should follow each other.
        jobs: how many are rounded at a time. Each needs memory for a few copies of its tensor; the moments are shared.
        progress: called after each tensor and format; with a rounder's workers after each tensor.
    """
    items, wanted = _items(menu), pending(rounder, menu)
    if rounder.workers is not None:
        _rounded_by(rounder.workers, rounder, wanted, len(items), progress)
        return
    with one_thread(), ThreadPoolExecutor(jobs) as pool:
        for done in _completed(pool, rounder, iter(wanted), jobs):
            if progress is not None:
                progress(len(items) - len(wanted) + done, len(items))


def _rounded_by(
    workers: Workers,
    rounder: Rounder,
    wanted: Sequence[tuple[str, QuantFormat]],
    total: int,
    progress: Progress | None,
) -> None:
    done = total - len(wanted)
    tasks = [Task(item, item[0]) for item in by_tensor(wanted)]
    for _, more in workers.run(RoundTensors(replace(rounder, workers=None)), tasks):
        done += more
        if progress is not None:
            progress(done, total)


def pending(rounder: Rounder, menu: Mapping[str, Sequence[QuantFormat]]) -> list[tuple[str, QuantFormat]]:
    """What `round_all` would round; nothing without a cache, or with ``rtn``."""
    if rounder.cache is None or rounder.rounding == "rtn":
        return []
    return [item for item in _items(menu) if not rounder.cache.holds(*item)]


def _items(menu: Mapping[str, Sequence[QuantFormat]]) -> list[tuple[str, QuantFormat]]:
    return [(name, fmt) for name, formats in menu.items() for fmt in formats if not fmt.is_float]


def _completed(
    pool: ThreadPoolExecutor, rounder: Rounder, wanted: Iterator[tuple[str, QuantFormat]], jobs: int
) -> Iterator[int]:
    """Yield how many are done, with ``jobs`` in flight and no more: an error then need not wait for the whole list."""
    done = 0
    running: set[Future[StoredTensor]] = {pool.submit(rounder.store, *item) for item in islice(wanted, jobs)}
    while running:
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            future.result()
            done += 1
            yield done
        running |= {pool.submit(rounder.store, *item) for item in islice(wanted, len(ended))}
