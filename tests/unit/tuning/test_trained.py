from __future__ import annotations

import pytest
import torch

from qplan.formats import QuantFormat
from qplan.rounding import Int8Activations, IntTensor, rtn
from qplan.settings import DynamicOption
from qplan.tuning.straight import StraightActivations
from qplan.tuning.trained import TrainedGrid

FORMATS = [
    QuantFormat(2, 32),
    QuantFormat(4, 64),
    QuantFormat(8, 0),
    QuantFormat(4, 32, symmetric=True),
    QuantFormat(3, 32, scale_bits=32),
]


def a_grid(fmt: QuantFormat, *, rows: int = 5) -> TrainedGrid:
    generator = torch.Generator().manual_seed(3)
    stored = rtn(torch.randn(rows, 128, generator=generator), fmt)
    assert isinstance(stored, IntTensor)
    return TrainedGrid(stored)


def moved(fmt: QuantFormat) -> TrainedGrid:
    grid, generator = a_grid(fmt), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in grid.parameters.values():
            value.copy_(torch.randn(value.shape, generator=generator) / 4)
    return grid


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_nothing_is_changed_before_training(fmt: QuantFormat) -> None:
    grid = a_grid(fmt)
    assert torch.equal(grid.weight(), grid.start.dequantize())
    assert grid.stored().alpha_bytes() == grid.start.alpha_bytes()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_what_is_computed_with_is_what_the_files_hold(fmt: QuantFormat) -> None:
    grid = moved(fmt)
    stored = grid.stored()
    width = torch.float16 if fmt.scale_bits == 16 else torch.float32
    parts = 1 if fmt.symmetric else 2
    alpha = torch.frombuffer(bytearray(stored.alpha_bytes()), dtype=width).float().view(5, -1, parts)
    blocks = (stored.codes.float() + fmt.levels[0]).view(5, alpha.shape[1], -1)
    values = blocks * alpha[..., -1:] + (0 if fmt.symmetric else alpha[..., :1])
    assert torch.equal(grid.weight(), values.view(5, 128))
    assert torch.equal(grid.weight(slice(1, 3)), grid.weight()[1:3])
    assert not torch.equal(grid.weight(), grid.start.dequantize())
    assert torch.equal(stored.codes, grid.start.codes)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_gradients_are_those_of_the_grid_that_is_not_rounded(fmt: QuantFormat) -> None:
    grid = moved(fmt)
    slopes = torch.randn(5, 128, generator=torch.Generator().manual_seed(5))
    grid.weight().backward(slopes)
    values = {name: value.detach().clone().requires_grad_() for name, value in grid.parameters.items()}
    start, blocks = grid.start, grid.start.scale.shape[1]
    levels = (start.codes.float() + fmt.levels[0]).view(5, blocks, -1)
    scale = start.scale * (1 + values["wider"] / -fmt.levels[0])
    weight = levels * scale.unsqueeze(-1)
    if start.zero is not None:
        weight = weight + (start.zero + start.scale * values["higher"]).unsqueeze(-1)
    weight.view(5, 128).backward(slopes)
    for name, value in grid.parameters.items():
        torch.testing.assert_close(value.grad, values[name].grad, rtol=1e-5, atol=1e-5)


def test_a_step_moves_the_outermost_weights_by_a_step_of_their_grid() -> None:
    for fmt in FORMATS[:2]:
        grid = a_grid(fmt)
        with torch.no_grad():
            grid.wider.fill_(1.0)
        lowest = (grid.start.codes == 0).view(*grid.start.scale.shape, -1)
        change = (grid.weight() - grid.start.dequantize()).view_as(lowest)
        steps = change / grid.start.scale.unsqueeze(-1)
        torch.testing.assert_close(steps[lowest], torch.full_like(steps[lowest], -1.0), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("option", [0, 2])
def test_gradients_go_straight_through_int8_activations(option: DynamicOption) -> None:
    x = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(6)).requires_grad_()
    plain = Int8Activations("prefill", option)
    seen = StraightActivations.of(plain).round(x, 32 if option else 0)
    assert torch.equal(seen, plain.round(x.detach(), 32 if option else 0))
    slopes = torch.randn(seen.shape, generator=torch.Generator().manual_seed(7))
    (found,) = torch.autograd.grad(seen, x, slopes)
    assert torch.equal(found, slopes)
