"""The values that MNN stores for a model's tensors: computed when they are asked for, kept within a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from qplan.errors import InputError
from qplan.formats import FP32, QuantFormat
from qplan.model.load import LoadedModel
from qplan.rounding import rtn
from qplan.rounding.embedding import store_embedding
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored import row_pieces


@dataclass
class StoredWeights:
    """The values that MNN stores for tensors of one model, cached up to a limit.

    The cache keeps the first values until it is full and evicts nothing by itself: repeated passes over all variants in
    the same order would evict each entry before its next use.
    """

    loaded: LoadedModel
    rounder: Rounder | None = None
    """Chooses the integers; None rounds to nearest."""
    limit_bytes: int = 1 << 30
    """Most bytes to keep."""
    _kept: dict[tuple[str, QuantFormat], Tensor] = field(default_factory=dict)
    _bytes: int = 0

    def get(self, name: str, fmt: QuantFormat) -> Tensor:
        """float32 ``[out_features, in_features]``: a tensor's weight after storage in a format.

        Raises:
            InputError: the engine does not compute this format correctly for this tensor.
        """
        if (name, fmt) in self._kept:
            return self._kept[name, fmt]
        self.check(name, fmt)
        value = self._rounder.store(name, fmt).dequantize().to(self.loaded.device)
        if self._bytes + value.nbytes <= self.limit_bytes:
            self._kept[name, fmt] = value
            self._bytes += value.nbytes
        return value

    def rows(self, name: str, fmt: QuantFormat, rows: slice) -> Tensor:
        """float32 ``[rows, in_features]``: some rows of `get`, computed on their own if the cache has no room for all.

        Raises:
            InputError: the engine does not compute this format correctly for this tensor.
        """
        if self._fits(name, fmt):
            return self.get(name, fmt)[rows]
        self.check(name, fmt)
        return self._rounder.store(name, fmt, rows).dequantize().to(self.loaded.device)

    def look_up(self, name: str, fmt: QuantFormat, exact: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        """Rows ``[*ids, in_features]`` of `get`, and no others in float32 if the cache has no room for all.

        Args:
            name: an embedding, or a head tied to it.
            fmt: its format.
            exact: looks rows of its unstored weight up.
            ids: int64, which rows.
        """
        if self.loaded.card.tensor(name).is_embedding:
            self.check(name, fmt)
            wanted, places = ids.unique(return_inverse=True)
            rows_wanted = exact(wanted)
            return store_embedding(rows_wanted, fmt).dequantize().to(rows_wanted)[places]
        if self._fits(name, fmt):
            return functional.embedding(ids, self.get(name, fmt)).to(exact(ids[..., :1]))
        self.check(name, fmt)
        wanted, places = ids.unique(return_inverse=True)
        if fmt.is_float or self._rounder.rounding == "rtn":
            rows_wanted = exact(wanted)
            return rtn(rows_wanted, fmt).dequantize().to(rows_wanted)[places]
        parts: list[Tensor] = []
        for rows, part in self._rounder.pieces(name, fmt):
            here = wanted[(wanted >= rows.start) & (wanted < rows.stop)].cpu()
            parts.append(part.rows(here - rows.start).dequantize())
        return torch.cat(parts)[places.cpu()].to(exact(ids[..., :1]))

    def pieces(self, name: str, fmt: QuantFormat) -> Iterator[tuple[slice, Tensor]]:
        """`get` a few rows at a time, where the matrix is large; no more is in memory if the cache has no room for all.

        Raises:
            InputError: the engine does not compute this format correctly for this tensor.
        """
        if self._fits(name, fmt):
            whole = self.get(name, fmt)
            yield from ((rows, whole[rows]) for rows in row_pieces(*whole.shape))
            return
        self.check(name, fmt)
        for rows, part in self._rounder.pieces(name, fmt):
            yield rows, part.dequantize().to(self.loaded.device)

    def forget(self) -> None:
        """Drop everything that is kept."""
        self._kept.clear()
        self._bytes = 0

    def unchanged(self, name: str, fmt: QuantFormat) -> bool:
        """Whether storage keeps every weight of a tensor bit for bit."""
        return all(torch.equal(part, self.loaded.weight(name, rows).float()) for rows, part in self.pieces(name, fmt))

    def check(self, name: str, fmt: QuantFormat) -> None:
        """Refuse a format that a tensor cannot have.

        Raises:
            InputError: the engine does not compute this format correctly for this tensor.
        """
        spec = self.loaded.card.tensor(name)
        if fmt != FP32 and not spec.allows(fmt):
            msg = f"{name} [{spec.out_features}, {spec.in_features}] cannot be {fmt}; resolve the format for it first"
            raise InputError(msg)

    def _fits(self, name: str, fmt: QuantFormat) -> bool:
        spec = self.loaded.card.tensor(name)
        return (name, fmt) in self._kept or self._bytes + 4 * spec.weights <= self.limit_bytes

    @property
    def _rounder(self) -> Rounder:
        return self.rounder or Rounder(self.loaded)
