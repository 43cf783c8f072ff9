"""The FP32 model's logits on some tokens, on disk: computed once, compared with as often as need be."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qplan.artifact import temporary_folder, writing
from qplan.model.layerwise import run_layer, with_layer_read
from qplan.model.load import LoadedModel
from qplan.sensitivity.metrics import TokenStats, compare, join, reference_of
from qplan.settings import Progress

Logits = NDArray[np.float32]
"""``[tokens, vocabulary]``."""

_PIECE = 1 << 24
"""Bytes to write at a time."""


@dataclass(frozen=True)
class KeptLogits:
    """Logits of the model in FP32 on some rows of tokens, on disk: a large vocabulary does not fit twice in RAM."""

    rows: NDArray[np.int64]
    """Token ids ``[rows, seq_len]``."""
    logits: Logits
    """``[rows, seq_len, vocabulary]``, memory-mapped."""

    def of(self, rows: slice) -> Tensor:
        """Logits of some rows, a copy."""
        return torch.from_numpy(_read(self.logits[rows]))

    def take(self, rows: slice) -> KeptLogits:
        """The same of some rows."""
        return KeptLogits(self.rows[rows], self.logits[rows])

    def compare(
        self, logits_of: Callable[[Sequence[int]], Logits], rows: int | None = None, tokens: int | None = None
    ) -> TokenStats:
        """Compare another model's logits with these, row by row.

        Args:
            logits_of: the other model, from token ids to float32 ``[tokens, vocabulary]``.
            rows: how many rows to take; None for all.
            tokens: how many tokens of each row to take; None for all.
        """
        parts = []
        for ids, expected in zip(self.rows[:rows, :tokens], self.logits[:rows, :tokens], strict=True):
            prepared = reference_of(torch.from_numpy(_read(expected)), torch.from_numpy(ids))
            parts.append(compare(prepared, torch.from_numpy(logits_of(ids.tolist()))))
        return join(parts)

    @cached_property
    def perplexity(self) -> float:
        """Perplexity of the text under the reference."""
        pairs = zip(self.rows, self.logits, strict=True)
        nll = torch.cat([reference_of(torch.from_numpy(_read(row)), torch.from_numpy(ids)).nll for ids, row in pairs])
        return float(nll.mean().exp())


@contextmanager
def kept_logits(loaded: LoadedModel, rows: NDArray[np.int64], progress: Progress | None = None) -> Iterator[KeptLogits]:
    """Run the model in FP32 over ``rows [n, seq_len]``; the logits live in a temporary file until the block ends.

    Raises:
        StorageError: the temporary folder has no space for them; set ``TMPDIR`` to one that has.
    """
    shape = (*rows.shape, loaded.card.vocabulary)
    with temporary_folder("reference") as folder:
        path = folder / "logits.f32"
        need = math.prod(shape) * np.dtype(np.float32).itemsize
        # a mapped file that finds no space when it is filled would end the process by a signal
        with writing(path, need=need), path.open("wb") as stream:
            _reserve(stream, need)
        logits = np.memmap(path, np.float32, "r+", shape=shape)
        for number, found in enumerate(_logits(loaded, rows, progress)):
            logits[number] = found.to("cpu", torch.float32).numpy()
            _let_go(logits)
        yield KeptLogits(rows, logits)
        del logits


def _reserve(stream: BinaryIO, size: int) -> None:
    """Give an empty file its size, with room on the disk for all of it."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)
        return
    # macOS has no such call
    stream.writelines(bytes(min(_PIECE, size - start)) for start in range(0, size, _PIECE))


def _logits(loaded: LoadedModel, rows: NDArray[np.int64], progress: Progress | None) -> Iterator[Tensor]:
    """Logits ``[seq_len, vocabulary]`` of each row, all of which go through one layer after the other."""
    batches = torch.from_numpy(rows).split(1)
    given: list[Any] = [None] * len(batches)
    layers, told = len(loaded.layers), Passes(len(rows), progress)
    with torch.no_grad():
        for index in range(layers):
            with with_layer_read(loaded, index):
                given = [run_layer(loaded, index, *pair) for pair in zip(batches, given, strict=True)]
            told.tell((index + 1) / (layers + 1))
        with with_layer_read(loaded, layers):
            for number, batch in enumerate(batches):
                yield run_layer(loaded, layers, batch, given[number])[0]
                told.tell((layers + (number + 1) / len(rows)) / (layers + 1))


@dataclass
class Passes:
    """Tells in whole passes how much of them is done where they run side by side."""

    total: int
    progress: Progress | None
    done: int = 0

    def tell(self, share: float) -> None:
        """Report a share of all passes, if it is a pass more than before."""
        done = int(self.total * share + 1e-6)
        if self.progress is not None and done > self.done:
            self.progress(done, self.total)
        self.done = max(self.done, done)


def _read(logits: Logits) -> Logits:
    """A copy in memory of its own; the mapped pages count no longer as this process's."""
    found = np.array(logits)
    _let_go(logits)
    return found


def _let_go(logits: Logits) -> None:
    base: object = logits
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
