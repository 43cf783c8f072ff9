"""Which integers a tensor is stored with: to nearest like MNN's exporter, or with error feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.quantize import IntTensor, StoredTensor, rtn
from qplan.quantize.gptq import gptq
from qplan.quantize.range_search import range_search
from qplan.sensitivity.moments import Moments
from qplan.sensitivity.stored_cache import StoredCache

Rounding = Literal["auto", "rtn", "search", "gptq"]
"""``auto``: for every output feature the one whose error is least on tokens that it was not fitted to."""

ROUNDINGS: tuple[Rounding, ...] = ("auto", "rtn", "search", "gptq")


@dataclass(frozen=True)
class Rounder:
    """Stores tensors of one model."""

    loaded: LoadedModel
    rounding: Rounding = "rtn"
    moments: Moments | None = None
    """What ``search`` and ``gptq`` fit to; needed for all but ``rtn``."""
    judge: Moments | None = None
    """Moments of other tokens, by which ``auto`` chooses."""
    cache: StoredCache | None = None
    """Keeps what took time, so that the weights that were measured are the weights that ship."""

    def store(self, name: str, fmt: QuantFormat) -> StoredTensor:
        """Store a tensor in a format; see `rtn`, `range_search` and `gptq`."""
        if self.cache is None or fmt.is_float or self.rounding == "rtn":
            return self._round(name, fmt)
        return self.cache.get(name, fmt, lambda: self._round(name, fmt))

    def _round(self, name: str, fmt: QuantFormat) -> StoredTensor:
        weight = self.loaded.weight(name)
        if fmt.is_float or self.rounding == "rtn" or self.moments is None:
            return rtn(weight, fmt)
        hessian = self.moments.of(name).to(weight.device)
        if self.rounding == "search":
            return range_search(weight, fmt, hessian.diagonal())
        if self.rounding == "gptq" or self.judge is None:
            return gptq(weight, fmt, hessian)
        candidates = (gptq(weight, fmt, hessian), range_search(weight, fmt, hessian.diagonal()), rtn(weight, fmt))
        return best_rows(weight, candidates, self.judge.of(name).to(weight.device))


def row_errors(weight: Tensor, stored: StoredTensor, moments: Tensor) -> Tensor:
    """Mean square error of each output feature, ``[out_features]``: ``e M e'`` for the error ``e`` of its row."""
    error = weight - stored.dequantize()
    return ((error @ moments) * error).sum(1)


def best_rows(weight: Tensor, candidates: Sequence[StoredTensor], moments: Tensor) -> StoredTensor:
    """Take every row from the candidate, all of one integer format, that has the least error on it."""
    best = candidates[0]
    least = row_errors(weight, best, moments)
    for other in candidates[1:]:
        if not isinstance(best, IntTensor) or not isinstance(other, IntTensor):
            msg = "floats have one rounding only"
            raise TypeError(msg)
        errors = row_errors(weight, other, moments)
        wins = (errors < least).unsqueeze(1)
        zero = None if best.zero is None or other.zero is None else torch.where(wins, other.zero, best.zero)
        best = IntTensor(
            best.format,
            torch.where(wins, other.codes, best.codes),
            torch.where(wins, other.scale, best.scale),
            zero,
        )
        least = torch.minimum(errors, least)
    return best
