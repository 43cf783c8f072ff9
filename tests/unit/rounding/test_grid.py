"""Grids: rounding is to the nearest, fits are the best, and whatever comes out can be stored."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qplan.formats import INT_BITS, QuantFormat
from qplan.rounding import rtn
from qplan.rounding.grid import Grid, fit, full_range, storable

formats = st.builds(
    QuantFormat,
    bits=st.sampled_from(INT_BITS),
    block=st.just(32),
    symmetric=st.booleans(),
    scale_bits=st.sampled_from((16, 32)),
)


def blocks_of(seed: int) -> Tensor:
    """float32 ``[5, 3, 32]``."""
    return torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(seed))


def error(grid: Grid, blocks: Tensor, signed: Tensor, weight: Tensor) -> Tensor:
    """Weighted square error of each block, in doubles."""
    return (weight.double() * (blocks.double() - grid.values(signed).double()) ** 2).sum(-1)


@given(formats, st.integers(0, 2**31))
def test_no_other_integer_is_nearer(fmt: QuantFormat, seed: int) -> None:
    blocks = blocks_of(seed)
    grid = full_range(blocks, fmt)
    every = torch.tensor(fmt.used_levels, dtype=torch.float32)
    distances = (grid.values(every.expand(5, 3, -1)).unsqueeze(-2) - blocks.unsqueeze(-1)).abs()
    found = (grid.values(grid.round(blocks)) - blocks).abs()
    assert torch.allclose(found, distances.amin(-1), atol=1e-5)


@given(formats, st.integers(0, 2**31))
def test_what_is_stored_is_what_the_engine_computes_with(fmt: QuantFormat, seed: int) -> None:
    blocks = blocks_of(seed)
    grid = full_range(blocks, fmt)
    signed = grid.round(blocks)
    stored = grid.store(signed)
    assert torch.equal(stored.dequantize(), grid.values(signed).flatten(1))
    assert stored.format == fmt
    assert int(stored.codes.max()) < 1 << fmt.bits
    assert (stored.zero is None) == fmt.symmetric


@given(formats, st.integers(0, 2**31))
def test_a_fit_is_better_than_its_neighbors(fmt: QuantFormat, seed: int) -> None:
    blocks = blocks_of(seed)
    weight = torch.rand(32, generator=torch.Generator().manual_seed(seed)) + 0.1
    signed = full_range(blocks, fmt).round(blocks)
    exact = QuantFormat(fmt.bits, fmt.block, fmt.symmetric, 32)
    best = fit(blocks, signed, weight, exact)
    least = error(best, blocks, signed, weight)
    for scale, zero in ((1.01, 0.0), (0.99, 0.0), (1.0, 0.01), (1.0, -0.01)):
        moved = Grid(exact, best.scale * scale, best.zero + (0.0 if fmt.symmetric else zero))
        assert (error(moved, blocks, signed, weight) >= least * (1 - 1e-5)).all()


@given(formats, st.integers(0, 2**31))
def test_a_grid_holds_only_numbers_that_its_format_can(fmt: QuantFormat, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale, zero = (torch.randn(4, 6, generator=generator) * 1e4 for _ in range(2))
    scale[0, 0], scale[0, 1], zero[0, 2] = float("nan"), float("inf"), float("inf")
    grid = storable(fmt, scale, zero)
    assert torch.isfinite(grid.scale).all()
    assert torch.isfinite(grid.zero).all()
    assert (grid.scale >= 0).all()
    if fmt.scale_bits == 16:
        assert torch.equal(grid.scale.half().float(), grid.scale)
        assert torch.equal(grid.zero.half().float(), grid.zero)
    if fmt.symmetric:
        assert not grid.zero.any()


def test_the_full_range_is_that_of_rounding_to_nearest() -> None:
    weight = blocks_of(1).flatten(1)
    for fmt in (QuantFormat(4, 32), QuantFormat(3, 32, symmetric=True)):
        grid, stored = full_range(weight.view(5, 3, 32), fmt), rtn(weight, fmt)
        assert torch.allclose(grid.scale, stored.scale, rtol=2e-3)  # type: ignore[union-attr]


def test_a_constant_block_is_its_zero_point() -> None:
    blocks = torch.full((1, 2, 32), 0.75)
    for grid in (
        full_range(blocks, QuantFormat(4, 32)),
        fit(blocks, torch.ones_like(blocks), torch.ones(32), QuantFormat(4, 32)),
    ):
        assert torch.equal(grid.values(grid.round(blocks)), blocks)
        assert not grid.scale.any()
