"""GPTQ (Frantar et al., arXiv 2210.17323) on MNN's block grids, and refinement of its result.

Minimizes ``tr(E H E')`` for the rounding error ``E [out, in]`` and the inputs' second moments
``H = X'X / tokens [in, in]``: columns are rounded one by one, those with the largest inputs first as far as blocks
allow, each error spread over the columns that follow. A block's grid is searched when its first column is reached, on
the weights as corrected so far. Afterwards sweeps over the blocks alternate least-squares refits of a block's grid
with coordinate descent over its integers (QuantEase, arXiv 2309.01885).

That ends in one of very many minima, and error feedback from a slightly different grid ends in another one. So it may
be tried again, from a block drawn at random on and with grids a little wider or narrower than those of the best found:
what loses less is kept, row by row. Each time takes about as long as the first, and the gain grows with the logarithm
of their number (``reports/rounding/restarts.py``).

Rows are independent of each other and worked on in chunks, transposed: a column is then contiguous, and a block of
a chunk stays in the processor's cache. Only the columns of one block are looped over, and of a long block, such as a
whole row, only those of a part of it; everything else is a product of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.model.half_products import half_products_pay
from qplan.rounding.codes import extreme_levels
from qplan.rounding.columns import refine_columns, round_columns
from qplan.rounding.curvature import Curvature, Ordered
from qplan.rounding.grid import Grid, storable
from qplan.rounding.range_search import search_grid
from qplan.rounding.stored import ROWS_TOGETHER, IntTensor, StoredTensor, stacked, store_float

SWEEPS = 3
"""Passes of refinement after GPTQ; each costs about as much as GPTQ itself."""

_CHUNK_ROWS = ROWS_TOGETHER
_JITTER = 0.1
"""Standard deviation by which a block's outermost level and its zero move where rounding is tried again, in steps."""
_SEED = 0
"""Of what is tried again."""
_PART = 64
"""Columns that correct each other one by one; those behind them in the block are corrected by one matrix product."""
_WIDE = 768
"""Columns from which a sweep takes most of its time for products of matrices."""


def gptq(
    weight: Tensor, fmt: QuantFormat, curvature: Curvature, *, sweeps: int = SWEEPS, restarts: int = 0
) -> StoredTensor:
    """Store ``weight [out, in]`` with the error feedback of GPTQ, then refine.

    Args:
        weight: the matrix.
        fmt: any format; floats are stored as they are.
        curvature: of the inputs.
        sweeps: passes of refinement.
        restarts: times to try both again.
    """
    if fmt.is_float:
        return store_float(weight, fmt)
    return gptq_widths(weight, (fmt,), curvature, sweeps=sweeps, restarts=restarts)[0]


def gptq_widths(
    weight: Tensor,
    formats: Sequence[QuantFormat],
    curvature: Curvature,
    *,
    sweeps: int = SWEEPS,
    restarts: int = 0,
) -> list[IntTensor]:
    """Store ``weight [out, in]`` in several formats that differ in their width alone.

    They share every step through the columns, which is what takes the time where rows are few.

    Args:
        weight: the matrix.
        formats: integer formats, the same but for their bits.
        curvature: of the inputs.
        sweeps: passes of refinement.
        restarts: times to try again.
    """
    ordered = curvature.ordered(formats[0].block_size(weight.shape[1]))
    parts = []
    for _, work in _chunks(weight, formats, ordered):
        work.refine(sweeps)
        work.restart(sweeps, restarts)
        parts.append(work.store())
    return _in_place(parts, ordered)


def gptq_phases(
    weight: Tensor, formats: Sequence[QuantFormat], curvature: Curvature, few: Tensor, *, sweeps: int = SWEEPS
) -> tuple[list[IntTensor], list[IntTensor]]:
    """The same after error feedback, and some rows of it after refinement too.

    Args:
        weight: the matrix.
        formats: integer formats, the same but for their bits.
        curvature: of the inputs.
        few: int64 ``[few]``, ascending: the rows to refine.
        sweeps: passes of refinement.
    """
    ordered = curvature.ordered(formats[0].block_size(weight.shape[1]))
    parts, refined = [], []
    for span, work in _chunks(weight, formats, ordered):
        parts.append(work.store())
        inside = few[(few >= span.start) & (few < span.stop)] - span.start
        if len(inside):
            some = work.take(inside)
            some.refine(sweeps)
            refined.append(some.store())
    return _in_place(parts, ordered), _in_place(refined, ordered)


def _chunks(weight: Tensor, formats: Sequence[QuantFormat], ordered: Ordered) -> Iterator[tuple[slice, _Rows]]:
    """Some rows after the others, after error feedback."""
    step = max(1, _CHUNK_ROWS // len(formats))
    for start in range(0, len(weight), step):
        rows = weight[start : start + step]
        yield (
            slice(start, start + len(rows)),
            _Rows.feedback(rows.to(torch.float32)[:, ordered.columns], formats, ordered),
        )


def _in_place(parts: Sequence[Sequence[IntTensor]], ordered: Ordered) -> list[IntTensor]:
    """Chunks of rows, in each format, as whole matrices with their columns in the order that they are stored in."""
    columns, blocks = ordered.columns.argsort(), ordered.blocks.argsort()
    found = []
    for own in zip(*parts, strict=True):
        whole = stacked(own)
        zero = None if whole.zero is None else whole.zero[:, blocks]
        found.append(IntTensor(whole.format, whole.codes[:, columns], whole.scale[:, blocks], zero))
    return found


@dataclass
class _Rows:
    """Some rows while they are being rounded, transposed: once for every format, side by side."""

    formats: Sequence[QuantFormat]
    """They differ in their width alone."""
    levels: tuple[Tensor, Tensor]
    """Smallest and largest level, ``[rows]`` each."""
    ordered: Ordered
    """Of the inputs."""
    weight: Tensor
    """``[in, rows]``."""
    signed: Tensor
    """Signed integers as float32, ``[in, rows]``."""
    scale: Tensor
    """``[n_blocks, rows]``."""
    zero: Tensor
    """``[n_blocks, rows]``."""

    @classmethod
    def feedback(cls, weight: Tensor, formats: Sequence[QuantFormat], ordered: Ordered) -> _Rows:
        """Round ``weight [rows, in]``, its columns in order, by GPTQ."""
        work = weight.T.repeat(1, len(formats))
        blocks = (len(work) // formats[0].block_size(len(work)), work.shape[1])
        scale, zero = work.new_empty(blocks), work.new_empty(blocks)
        levels = _extreme_levels(formats, len(weight), work.device)
        rows = cls(formats, levels, ordered, work, torch.empty_like(work), scale, zero)
        rows.feed(0, torch.zeros_like(work), searches=True)
        return rows

    def feed(self, first: int, carried: Tensor, *, searches: bool) -> None:
        """Round the columns of one block after the other, each making up for the errors of those before it.

        Args:
            first: block to begin with.
            carried: ``[in, rows]``: errors of the columns before it, each multiplied by its row of the factor; used up.
            searches: whether each block's grid is searched first.
        """
        factor, (low, high) = self.ordered.factor, self.levels
        for index in range(first, len(self.scale)):
            span = self.span(index)
            own, weight = factor[span, span], self.weight[span]
            if searches:
                self._search_grid(index, carried[span], own)
            errors = torch.empty_like(weight)
            scale, zero = self.scale[index], self.zero[index]
            round_columns(weight - zero, carried[span], own, scale, low, high, self.signed[span], errors, _PART)
            carried[span.stop :].addmm_(factor[span, span.stop :].T, errors)

    def _search_grid(self, index: int, carried: Tensor, factor: Tensor) -> None:
        """Search a block's grid, on the weights as the errors ``carried`` correct them; ``factor`` is the block's."""
        span = self.span(index)
        corrected = self.weight[span]
        if index:
            corrected = corrected + torch.linalg.solve_triangular(factor.T, carried, upper=False)
        importance = self.ordered.hessian.diagonal()[span].view(1, 1, -1)
        for fmt, own in self._by_format():
            grid = search_grid(corrected[:, own].T.contiguous().unsqueeze(1), importance, fmt)
            self.scale[index, own], self.zero[index, own] = grid.scale.squeeze(1), grid.zero.squeeze(1)

    def restart(self, sweeps: int, restarts: int) -> None:
        """Round again so many times, each time from what lost least; keep what loses less, row by row."""
        if not restarts:
            return
        random, least = torch.Generator().manual_seed(_SEED), self.losses()
        for _ in range(restarts):
            other = self._rounded_again(random)
            other.refine(sweeps)
            loss = other.losses()
            wins = loss < least
            for own, new in zip(self.found, other.found, strict=True):
                torch.where(wins, new, own, out=own)
            least = torch.where(wins, loss, least)

    @property
    def found(self) -> tuple[Tensor, Tensor, Tensor]:
        """Integers, scales and zeros."""
        return self.signed, self.scale, self.zero

    def _rounded_again(self, random: torch.Generator) -> _Rows:
        """A copy whose blocks from a random one on were rounded again, on grids a little wider or narrower."""
        other = replace(self, signed=self.signed.clone(), scale=self.scale.clone(), zero=self.zero.clone())
        first = int(torch.randint(len(self.scale), (), generator=random))
        wider, higher = torch.randn(2, *self.scale[first:].shape, generator=random).mul_(_JITTER).to(self.scale.device)
        scale = self.scale[first:]
        for fmt, own in self._by_format():
            grid = storable(
                fmt,
                scale[:, own] * (1 + wider[:, own] / -fmt.levels[0]),
                self.zero[first:, own] + scale[:, own] * higher[:, own],
            )
            other.scale[first:, own], other.zero[first:, own] = grid.scale, grid.zero
        done = self.span(first).start
        carried = torch.zeros_like(self.weight)
        carried[done:] = self.ordered.factor[:done, done:].T @ self._residual()[:done]
        other.feed(first, carried, searches=False)
        return other

    def losses(self) -> Tensor:
        """The loss of each row, ``[rows]``."""
        residual = self._residual()
        found: Tensor = torch.linalg.vecdot(self.ordered.hessian @ residual, residual, dim=0)
        return found

    def _residual(self) -> Tensor:
        """The weights less what is stored, ``[in, rows]``."""
        shape = (len(self.scale), -1, self.weight.shape[1])
        values = self.signed.view(shape) * self.scale.unsqueeze(1) + self.zero.unsqueeze(1)
        return self.weight - values.view_as(self.weight)

    def refine(self, sweeps: int) -> None:
        """Sweep so many times."""
        for _ in range(sweeps):
            self.sweep()

    def sweep(self) -> None:
        """Refit every block's grid and then its integers, with all other blocks fixed."""
        residual = self._residual()
        seen = residual.to(torch.bfloat16) if self._half else residual
        for index in range(len(self.scale)):
            span = self.span(index)
            # half the slope of the loss in this block
            pull = (self.ordered.hessian[span].to(seen.dtype) @ seen).to(torch.float32)
            residual[span] -= self._refit(index, pull)
            residual[span] -= self._descend(index, pull)
            if seen is not residual:
                seen[span] = residual[span]

    @property
    def _half(self) -> bool:
        """Whether slopes are products of bfloat16: errors of SmolLM2-135M's tensors are the same within 0.3 %."""
        return len(self.weight) >= _WIDE and half_products_pay(self.weight.device)

    def _refit(self, index: int, pull: Tensor) -> Tensor:
        """Refit a block's grid under the full H: its target carries the other blocks' errors.

        Returns:
            how the values moved, ``[block, rows]``; ``pull`` follows.
        """
        span = self.span(index)
        local, codes = self.ordered.hessian[span, span], self.signed[span]
        scale, zero = self.scale[index], self.zero[index]
        # H times any values q s + z is (H q) s + (H 1) z
        weighted, ones = local @ codes, local.sum(1, keepdim=True)
        target = torch.addcmul(pull, weighted, scale).addcmul_(ones, zero)
        fresh = _solve_block(codes, target, weighted, ones, self.formats[0])
        wider, higher = fresh.scale - scale, fresh.zero - zero
        step = torch.addcmul(higher, codes, wider)
        moved = (weighted * wider).addcmul_(ones, higher)
        # rounding the scales to their storage width can undo the gain
        better = (step * moved).sum(0) < 2 * (step * pull).sum(0)
        self.scale[index] = torch.where(better, fresh.scale, scale)
        self.zero[index] = torch.where(better, fresh.zero, zero)
        pull.sub_(moved.mul_(better))
        return step.mul_(better)

    def _descend(self, index: int, pull: Tensor) -> Tensor:
        """Coordinate descent in a block: every integer in turn takes its best value.

        Returns:
            how the values moved, ``[block, rows]``; ``pull`` is used up.
        """
        span = self.span(index)
        signed, (low, high) = self.signed[span], self.levels
        steps = torch.empty_like(signed)
        refine_columns(pull, self.ordered.hessian[span, span], self.scale[index], low, high, signed, steps, _PART)
        return steps

    def span(self, index: int) -> slice:
        """Columns of a block."""
        size = len(self.weight) // len(self.scale)
        return slice(index * size, (index + 1) * size)

    def take(self, rows: Tensor) -> _Rows:
        """A copy of some rows, in every format."""
        places = torch.cat([own.start + rows for _, own in self._by_format()])
        levels = _extreme_levels(self.formats, len(rows), rows.device)
        taken = (part[:, places] for part in (self.weight, self.signed, self.scale, self.zero))
        return _Rows(self.formats, levels, self.ordered, *taken)

    def store(self) -> list[IntTensor]:
        """The rows as MNN stores them, in each format, their columns in the order in which they were rounded."""
        found = []
        for fmt, own in self._by_format():
            signed = self.signed[:, own].T.reshape(own.stop - own.start, len(self.scale), -1)
            grid = Grid(fmt, self.scale[:, own].T.contiguous(), self.zero[:, own].T.contiguous())
            found.append(grid.store(signed))
        return found

    def _by_format(self) -> Iterator[tuple[QuantFormat, slice]]:
        """Where the rows of each format are."""
        rows = self.weight.shape[1] // len(self.formats)
        for number, fmt in enumerate(self.formats):
            yield fmt, slice(number * rows, (number + 1) * rows)


def _extreme_levels(formats: Sequence[QuantFormat], rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Smallest and largest levels ``[formats * rows]``."""
    bounds = torch.tensor([extreme_levels(fmt) for fmt in formats], dtype=torch.float32, device=device)
    low, high = bounds.repeat_interleave(rows, 0).T.contiguous()
    return low, high


def _solve_block(codes: Tensor, target: Tensor, weighted: Tensor, ones: Tensor, fmt: QuantFormat) -> Grid:
    """Scales and zeros ``[rows]`` that minimize the quadratic ``v' H v - 2 v' target`` for ``v = q s + z``.

    ``codes`` are ``q``, ``weighted`` is ``H q`` and ``ones [block, 1]`` is ``H 1``.
    """
    qq, q1, qp = (weighted * codes).sum(0), weighted.sum(0), (codes * target).sum(0)
    if fmt.symmetric:
        scale = qp / qq.clamp(min=1e-30)
        return storable(fmt, scale, torch.zeros_like(scale))
    all_ones, p1 = ones.sum(), target.sum(0)
    determinant = qq * all_ones - q1 * q1
    safe = determinant > 1e-6 * qq * all_ones
    divisor = torch.where(safe, determinant, torch.ones_like(determinant))
    scale = torch.where(safe, (qp * all_ones - p1 * q1) / divisor, torch.zeros_like(qp)).clamp(min=0)
    return storable(fmt, scale, (p1 - scale * q1) / all_ones)
