"""Chooses the integers that a tensor is stored with: to nearest like MNN's exporter, or with error feedback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.notes import Note, few, note
from qplan.rounding import IntTensor, StoredTensor, rtn
from qplan.rounding.curvature import Curvature
from qplan.rounding.embedding import store_embedding
from qplan.rounding.gptq import SWEEPS, gptq_phases, gptq_widths
from qplan.rounding.int16 import within_int16
from qplan.rounding.methods import round_with
from qplan.rounding.moments import Moments
from qplan.rounding.stored import joined, row_pieces
from qplan.rounding.stored_cache import FittedTensors, StoredCache
from qplan.roundings import CANDIDATES, METHODS, needs_tokens
from qplan.run.safetensors_file import ALL
from qplan.spread.work import Workers

FEW_TOKENS = 256
"""Tensors that fewer calibration tokens reach are rounded to nearest: so few tokens say little about their inputs.

With 256 tokens ``auto`` still took a third to half off the loss of rounding to nearest (``reports/rounding``).
"""

_TRIED = 64
"""Rows, spread over a matrix, on which each further candidate of ``auto`` is tried before it gets the others: of 12
tensors of SmolLM2-135M in three widths, error feedback is best in 99.7 to 100 % of all rows."""


class _Prepared:
    """Keeps the last curvature and its judge moments, since tensors that share an input follow each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[object, ...] = ()
        self._value: tuple[Curvature, Tensor | None] | None = None

    def __reduce__(self) -> tuple[type[_Prepared], tuple[()]]:
        """Pickle as empty: another process prepares its own."""
        return _Prepared, ()

    def of(
        self, moments: Moments, judge: Moments | None, name: str, device: torch.device
    ) -> tuple[Curvature, Tensor | None]:
        key = (moments.folder, moments.key_of[name], device)
        with self._lock:
            if self._value is None or self._key != key:
                self._value = None  # before the next is made: they are large
                seen = None if judge is None else judge.of(name).to(device)
                self._value = Curvature(moments.of(name).to(device)), seen
                self._key = key
            return self._value


@dataclass(frozen=True)
class Rounder:
    """Stores tensors of one model, with the same integers whatever the number of threads."""

    loaded: LoadedModel
    rounding: str = "rtn"
    """One of `qplan.roundings.ROUNDINGS`."""
    moments: Moments | None = None
    """Moments that roundings are fitted to; ``auto`` needs them too."""
    judge: Moments | None = None
    """Moments of other tokens, by which ``auto`` chooses; only ``auto`` needs them."""
    cache: StoredCache | None = None
    """Keeps rounded tensors, so that the weights that were measured are the weights that ship."""
    workers: Workers | None = None
    """Of a cluster, who round where many tensors are rounded ahead (`qplan.rounding.round_all`)."""
    within_int16: bool = False
    """Whether sums of two products must fit int16, see `qplan.rounding.int16`: for targets without dot product."""
    fitted: FittedTensors | None = None
    """Integers of a plan that were fitted to it as a whole, and take the place of the rounding's."""
    _prepared: _Prepared = field(default_factory=_Prepared, init=False, repr=False, compare=False)

    def store(self, name: str, fmt: QuantFormat, rows: slice = ALL) -> StoredTensor:
        """Store a tensor, or some of its output features, in a format; see `qplan.rounding.methods`."""
        if self.loaded.card.tensor(name).is_embedding:
            return self._by_pieces(name, lambda part: store_embedding(part, fmt), rows)
        if self.fitted is not None and self.fitted.have(name, fmt):
            return self._fitting(self.fitted.read(name, rows))
        if fmt.is_float or self.rounding == "rtn":
            found = self._by_pieces(name, lambda part: rtn(part, fmt), rows)
        elif self.cache is None:
            found = self._round(name, fmt).rows(rows)
        else:
            found = self.cache.get(name, fmt, lambda: self._round(name, fmt), rows)
        return self._fitting(found)

    def _fitting(self, tensor: StoredTensor) -> StoredTensor:
        return within_int16(tensor) if self.within_int16 else tensor

    def pieces(self, name: str, fmt: QuantFormat) -> Iterator[tuple[slice, StoredTensor]]:
        """The same, a few rows at a time where the matrix is large."""
        spec = self.loaded.card.tensor(name)
        fitted = self.fitted is not None and self.fitted.have(name, fmt)
        again = self.cache is None and not fmt.is_float and self.rounding != "rtn" and not fitted
        whole = self._fitting(self._round(name, fmt)) if again else None
        for rows in row_pieces(spec.out_features, spec.in_features):
            yield rows, self.store(name, fmt, rows) if whole is None else whole.rows(rows)

    @property
    def starved(self) -> dict[str, int]:
        """Tensors that are rounded to nearest because too few tokens reach them, and how many do."""
        counts = [moments.tokens for moments in (self.moments, self.judge) if moments is not None]
        least = {name: min(tokens[name] for tokens in counts) for name in (counts[0] if counts else ())}
        return {name: tokens for name, tokens in least.items() if tokens < FEW_TOKENS}

    @property
    def notes(self) -> tuple[Note, ...]:
        """What a reader must know."""
        if not (starved := self.starved):
            return ()
        named, others = few(list(starved))
        tokens = {name: starved[name] for name in named}
        return (note("too-few-tokens", least_tokens=FEW_TOKENS, tokens=tokens, others=others),)

    def _round(self, name: str, fmt: QuantFormat) -> StoredTensor:
        if self.rounding in METHODS and METHODS[self.rounding].whole:
            return round_with(self.rounding, self.loaded.weight(name), fmt)
        if not needs_tokens(self.rounding):
            return self._by_pieces(name, lambda part: round_with(self.rounding, part, fmt))
        if self.moments is None or (self.rounding == "auto" and self.judge is None):
            msg = f"rounding {self.rounding!r} needs moments to fit to, and auto others to choose by"
            raise TypeError(msg)
        if name in self.starved:
            return self._by_pieces(name, lambda part: rtn(part, fmt))
        with one_thread():
            curvature, judge = self._prepared.of(self.moments, self.judge, name, self.loaded.device)
            return self._by_pieces(name, lambda part: round_rows(part, fmt, self.rounding, curvature, judge))

    def _by_pieces(self, name: str, store: Callable[[Tensor], StoredTensor], rows: slice = ALL) -> StoredTensor:
        """Store some rows, a few at a time where the matrix is large: then no more of its weight is in memory."""
        spec = self.loaded.card.tensor(name)
        first, last, _ = rows.indices(spec.out_features)
        pieces = row_pieces(last - first, spec.in_features)
        return joined([store(self.loaded.weight(name, slice(first + p.start, first + p.stop))) for p in pieces])


def round_rows(
    weight: Tensor, fmt: QuantFormat, rounding: str, curvature: Curvature | None, judge: Tensor | None
) -> StoredTensor:
    """Store ``weight [out, in]``, any rows of a matrix, in a format; see `round_widths`."""
    return round_widths(weight, (fmt,), rounding, curvature, judge)[fmt]


def round_widths(
    weight: Tensor,
    formats: Sequence[QuantFormat],
    rounding: str,
    curvature: Curvature | None,
    judge: Tensor | None,
    *,
    columns: Tensor | None = None,
    sweeps: int = SWEEPS,
) -> dict[QuantFormat, StoredTensor]:
    """Store ``weight [out, in]``, any rows of a matrix, in several formats.

    Args:
        weight: the rows.
        formats: any formats; floats are stored as they are.
        rounding: one of `qplan.roundings.ROUNDINGS`.
        curvature: of the inputs that it is fitted to; needed unless the rounding fits to nothing.
        judge: moments ``[in, in]`` of other tokens, by which ``auto`` chooses; without, it takes its first candidate.
        columns: ``[in]``, factors of the weights' columns by which ``judge`` is not divided.
        sweeps: passes of refinement after GPTQ, see `qplan.rounding.gptq`.
    """
    found: dict[QuantFormat, StoredTensor] = {fmt: round_with("rtn", weight, fmt) for fmt in formats if fmt.is_float}
    for same in alike(fmt for fmt in formats if not fmt.is_float):
        first = _round_alike(_first(rounding), weight, same, curvature, sweeps)
        found |= _best(weight, dict(zip(same, first, strict=True)), rounding, curvature, judge, columns)
    return found


def round_phases(
    weight: Tensor,
    formats: Sequence[QuantFormat],
    rounding: str,
    curvature: Curvature,
    few: Tensor,
    *,
    judge: Tensor | None,
    columns: Tensor | None = None,
    sweeps: int = SWEEPS,
) -> tuple[dict[QuantFormat, StoredTensor], dict[QuantFormat, StoredTensor]]:
    """Store rows by error feedback alone, and a few of them as `round_widths` does too.

    Args:
        weight: the rows.
        formats: any formats; floats are stored as they are.
        rounding: ``gptq`` or ``auto``.
        curvature: of the inputs.
        few: int64 ``[few]``, ascending: rows to store in full.
        judge: see `round_widths`.
        columns: see `round_widths`.
        sweeps: passes of refinement.
    """
    found: dict[QuantFormat, StoredTensor] = {fmt: round_with("rtn", weight, fmt) for fmt in formats if fmt.is_float}
    refined = {fmt: stored.rows(few) for fmt, stored in found.items()}
    some = weight[few]
    for same in alike(fmt for fmt in formats if not fmt.is_float):
        feedback, better = gptq_phases(weight, same, curvature, few, sweeps=sweeps)
        found |= dict(zip(same, feedback, strict=True))
        refined |= _best(some, dict(zip(same, better, strict=True)), rounding, curvature, judge, columns)
    return found, refined


def _first(rounding: str) -> str:
    return CANDIDATES[0] if rounding == "auto" else rounding


def _best(  # noqa: PLR0917
    weight: Tensor,
    first: dict[QuantFormat, StoredTensor],
    rounding: str,
    curvature: Curvature | None,
    judge: Tensor | None,
    columns: Tensor | None,
) -> dict[QuantFormat, StoredTensor]:
    """What ``auto`` makes of its first candidate: the best of all for every row."""
    if rounding != "auto" or judge is None:
        return first
    others = [partial(round_with, name, curvature=curvature) for name in CANDIDATES[1:]]
    return {
        fmt: _best_of(weight, stored, [partial(other, fmt=fmt) for other in others], judge, columns)
        for fmt, stored in first.items()
    }


def _best_of(
    weight: Tensor,
    stored: StoredTensor,
    others: Sequence[Callable[[Tensor], StoredTensor]],
    judge: Tensor,
    columns: Tensor | None,
) -> StoredTensor:
    """The best of several roundings for every row, without those that are better than the first on no row of a few.

    Args:
        weight: the rows.
        stored: the first.
        others: make the others, of any rows.
        judge: see `round_widths`.
        columns: see `round_widths`.
    """
    if len(weight) > 2 * _TRIED:
        tried = torch.arange(_TRIED, device=weight.device) * len(weight) // _TRIED
        some = weight[tried]
        errors = row_errors(some, stored.rows(tried), judge, columns)
        others = [one for one in others if not (errors <= row_errors(some, one(some), judge, columns)).all()]
    return best_rows(weight, (stored, *(one(weight) for one in others)), judge, columns) if others else stored


def alike(formats: Iterable[QuantFormat]) -> list[list[QuantFormat]]:
    """Formats that differ in their width alone, together: they are rounded together."""
    found: dict[QuantFormat, list[QuantFormat]] = {}
    for fmt in formats:
        found.setdefault(fmt if fmt.is_float else replace(fmt, bits=8), []).append(fmt)
    return list(found.values())


def _round_alike(
    name: str, weight: Tensor, formats: Sequence[QuantFormat], curvature: Curvature | None, sweeps: int
) -> Sequence[StoredTensor]:
    """Round to formats that differ in their width alone."""
    if name == "gptq" and curvature is not None:
        return gptq_widths(weight, formats, curvature, sweeps=sweeps)
    return [round_with(name, weight, fmt, curvature) for fmt in formats]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums of floats depend on how they are split, but the integers must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def row_errors(weight: Tensor, stored: StoredTensor, moments: Tensor, columns: Tensor | None = None) -> Tensor:
    """Mean square error of each output feature, ``[out_features]``: ``e M e'`` for the error ``e`` of its row.

    Where columns of the weights have factors ``[in]`` and the moments are of inputs without them, errors are divided.
    """
    error = weight - stored.dequantize()
    if columns is not None:
        error.div_(columns)
    return ((error @ moments) * error).sum(1)


def best_rows(
    weight: Tensor, candidates: Sequence[StoredTensor], moments: Tensor, columns: Tensor | None = None
) -> StoredTensor:
    """Take every row from the candidate, all of one integer format, that has the least error on it."""
    best = candidates[0]
    least = row_errors(weight, best, moments, columns)
    for other in candidates[1:]:
        if not isinstance(best, IntTensor) or not isinstance(other, IntTensor):
            msg = "floats have one rounding only"
            raise TypeError(msg)
        errors = row_errors(weight, other, moments, columns)
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
