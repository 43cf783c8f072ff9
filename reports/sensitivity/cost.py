"""Time and memory of one mode, relative to passes over the same tokens."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from qplan.model.load import LoadedModel
from qplan.sensitivity.metrics import Reference, compare

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Time and memory of a piece of work."""

    seconds: float
    """Processor seconds of all threads together: the machine may be shared."""
    peak_mib: float | None
    """Peak resident memory less that before the work; None where Linux does not report it."""


def cost_of(work: Callable[[], object], repeats: int = 1) -> Cost:
    """Do a piece of work several times; returns the median time."""
    before, seconds = _reset_peak(), []
    for _ in range(repeats):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    after = _resident("VmHWM")
    return Cost(statistics.median(seconds), None if before is None or after is None else after - before)


def typical(costs: Sequence[Cost]) -> Cost:
    """The median time of repeated work, and the highest peak."""
    peaks = [cost.peak_mib for cost in costs if cost.peak_mib is not None]
    return Cost(statistics.median(cost.seconds for cost in costs), max(peaks, default=None))


def forward(loaded: LoadedModel, tokens: Tensor, batch_size: int) -> None:
    """One forward pass over all tokens."""
    for batch in tokens.split(batch_size):
        loaded.logits(batch)


def forward_and_loss(loaded: LoadedModel, tokens: Tensor, references: Sequence[Reference]) -> None:
    """One forward pass compared with known references, batch by batch: a measurement that reuses nothing else."""
    for batch, reference in zip(tokens.split(len(tokens) // len(references)), references, strict=True):
        compare(reference, loaded.logits(batch))


def forward_backward(loaded: LoadedModel, tokens: Tensor, batch_size: int, *, weights: bool) -> None:
    """One forward and backward pass, as in training with ``weights``, else for gradients of activations alone."""
    loaded.model.requires_grad_(weights)
    try:
        for batch in tokens.split(batch_size):
            _forward_backward(loaded, batch, weights=weights)
    finally:
        loaded.model.requires_grad_(requires_grad=False)


def _forward_backward(loaded: LoadedModel, batch: Tensor, *, weights: bool) -> None:
    hook = None
    if not weights:
        hook = loaded.embedding.register_forward_hook(lambda _module, _args, out: out.detach().requires_grad_())
    try:
        with torch.enable_grad():
            logits: Tensor = loaded.model(input_ids=batch, use_cache=False).logits
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
    finally:
        loaded.model.zero_grad(set_to_none=True)
        if hook is not None:
            hook.remove()


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
