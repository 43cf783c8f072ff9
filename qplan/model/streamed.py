"""Modules whose weights stay in the weight files until they are used, for models that are larger than memory.

``weight`` is read, and brought to the type that the model computes in, whenever it is asked for, and gone with the
last that holds it. So one linear's weight is in memory at a time, or those of one layer where a graph needs them.
Everything else about the modules is what it was: biases and norms are small and stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from qplan.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Change:
    """What is done to a weight after it was read."""

    change: Callable[[Tensor], None]
    """Changes a weight ``[out_features, in_features]`` in place."""
    by_row: bool
    """Whether it does the same to each row, so that some of them can be changed by themselves."""


@dataclass(frozen=True)
class WeightSource:
    """Where a module's weight comes from."""

    checkpoint: Checkpoint
    keys: tuple[str, ...]
    """Tensors of the checkpoint, one below the other."""
    dtype: torch.dtype
    device: torch.device
    changes: tuple[Change, ...] = field(default=())
    """Done in this order."""

    def read(self) -> Tensor:
        """The whole weight, in memory of its own."""
        return self._changed(self.checkpoint.stacked(self.keys))

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """The weight's least and largest value, NaN if it holds any; found in one look at it as it is stored."""
        parts = [self.read()] if self.changes else [self.checkpoint.mapped(key) for key in self.keys]
        found = [part.aminmax() for part in parts]
        low, high = torch.stack([low for low, _ in found]), torch.stack([high for _, high in found])
        return float(low.amin()), float(high.amax())

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``[*ids, in_features]`` of the weight."""
        if not self._by_row:
            return functional.embedding(ids, self.read())
        return self._changed(functional.embedding(ids.cpu(), self.checkpoint.mapped(self.keys[0])))

    def part(self, rows: slice) -> Tensor:
        """The weight's rows from one to another."""
        return self._changed(self.checkpoint.mapped(self.keys[0])[rows]) if self._by_row else self.read()[rows]

    @property
    def _by_row(self) -> bool:
        return len(self.keys) == 1 and all(change.by_row for change in self.changes)

    def _changed(self, rows: Tensor) -> Tensor:
        found = rows.to(self.device, self.dtype, copy=True)
        for change in self.changes:
            change.change(found)
        return found

    def __deepcopy__(self, memo: dict[int, object]) -> WeightSource:
        """The same: nothing of it changes."""
        return self


class Streamed(nn.Module):
    """A module whose weight is read when it is asked for."""

    source: WeightSource
    given: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The weight; every access reads it again."""
        return self.source.read() if self.given is None else self.given

    def rows(self, ids: Tensor) -> Tensor:
        """Some rows ``[*ids, in_features]`` of the weight."""
        return self.source.rows(ids) if self.given is None else functional.embedding(ids, self.given)

    def part(self, rows: slice) -> Tensor:
        """The weight's rows from one to another."""
        return self.source.part(rows) if self.given is None else self.given[rows]

    @contextmanager
    def with_weight(self, weight: Tensor) -> Iterator[None]:
        """Have another weight within a block."""
        before = self.given
        self.given = weight
        try:
            yield
        finally:
            self.given = before

    def change(self, change: Change) -> None:
        """Change the weight from now on, whenever it is read."""
        self.source = replace(self.source, changes=(*self.source.changes, change))


class _StreamedLinear(Streamed, nn.Linear):  # type: ignore[override]
    """A linear."""


class _StreamedEmbedding(Streamed, nn.Embedding):  # type: ignore[override]
    """An embedding, of which only those rows are read that are looked up."""

    def forward(self, ids: Tensor) -> Tensor:
        """Look rows up."""
        return self.rows(ids)


def stream(module: nn.Linear | nn.Embedding, source: WeightSource) -> None:
    """Let go of a module's weight, in place, and read it from ``source`` instead."""
    kind = type(module)
    streamed = _StreamedLinear if isinstance(module, nn.Linear) else _StreamedEmbedding
    del module._parameters["weight"]  # noqa: SLF001 - a property takes its place
    # behind the module's own class, whose forward may add to what is looked up, as Gemma's does
    own = streamed if issubclass(streamed, kind) else type(f"Streamed{kind.__name__}", (kind, streamed), {})
    module.__class__ = own
    vars(module)["source"] = source


def looked_up(embedding: nn.Module, ids: Tensor) -> Tensor:
    """Rows ``[*ids, hidden]`` of an embedding's weight, as they are in the matrix."""
    if isinstance(embedding, Streamed):
        return embedding.rows(ids)
    return functional.embedding(ids, embedding.get_parameter("weight"))


def looks_rows_up(embedding: nn.Embedding) -> bool:
    """Whether an embedding does nothing else."""
    return type(embedding).forward in {nn.Embedding.forward, _StreamedEmbedding.forward}
