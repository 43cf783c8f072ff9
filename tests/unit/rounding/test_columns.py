"""Loops over columns: compiled, they take the steps of Python, to the bit."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
import torch
from torch import Tensor

from qplan.rounding import columns


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The loops as they stand in the file, run by Python."""

    def refused(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("torch.jit.script", refused)
    return runpy.run_path(columns.__file__)


def _problem(block: int, rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(block)
    weight, carried = torch.randn(2, block, rows, generator=generator)
    matrix = torch.randn(block, block, generator=generator)
    scale = 0.1 + torch.rand(rows, generator=generator)
    scale[0] = 0
    return weight, 0.1 * carried, matrix @ matrix.T / block + torch.eye(block), scale


@pytest.mark.parametrize("block", [32, 100])
def test_a_torch_without_a_compiler_rounds_the_same(block: int, plain: dict[str, Any]) -> None:
    weight, carried, moments, scale = _problem(block, rows=12)
    factor = torch.linalg.cholesky(moments).T.contiguous()
    low, high = torch.full((12,), -8.0), torch.full((12,), 7.0)
    found = []
    for loops in (vars(columns), plain):
        levels, errors, steps = torch.zeros(3, block, 12)
        loops["round_columns"](weight, carried.clone(), factor, scale, low, high, levels, errors, 64)
        rounded = levels.clone()
        loops["refine_columns"](carried.clone(), moments, scale, low, high, levels, steps, 64)
        found.append((rounded, errors, levels, steps))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(found[0][0], found[0][2])


def test_each_column_makes_up_for_those_before_it() -> None:
    weight, _, moments, scale = _problem(16, rows=12)
    factor = torch.linalg.cholesky(moments.flip(0, 1)).flip(0, 1).contiguous()
    assert torch.equal(factor, factor.triu())
    low, high = torch.full((12,), -1e6), torch.full((12,), 1e6)
    levels, errors = torch.zeros(2, 16, 12)
    scale = scale.clamp(min=0.1)
    columns.round_columns(weight, torch.zeros(16, 12), factor, scale, low, high, levels, errors, 64)
    torch.testing.assert_close(errors, weight - levels * scale)
    # in the factor's coordinates, what is left of each column is half of a step at most
    left = (factor.T @ errors).abs() / (factor.diagonal().unsqueeze(1) * scale)
    assert float(left.max()) <= 0.5 + 1e-4
