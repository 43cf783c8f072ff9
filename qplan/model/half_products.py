"""Products of bfloat16, on processors that are made for them, where float32's digits are not needed.

A product's factors are rounded to 8 bits of mantissa and its terms added up in float32, so it is right to about a
hundredth of its spread and without a bias. For gradients at linears' inputs that is far less than what drawing labels
leaves open, and second moments of inputs average it out. Where small losses are measured, products on the way there
stay float32, since int8 activations are rounded from what they make; whole models that lose a hundred times as much as
such products do are compared by them (`qplan.choosing.halves`). To keep float32's digits, three products would be
needed, which takes a processor that is more than three times as fast at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qplan.model.replace import with_forward

_MADE_FOR = ("amx_bf16", "avx512_bf16")
"""Instructions that multiply bfloat16 and add up in float32, as `torch.cpu` names them."""


def half_products_pay(device: torch.device) -> bool:
    """Whether a device's processor multiplies bfloat16 clearly faster than float32; the same on every run."""
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name, False) for name in _MADE_FOR)


@contextmanager
def with_half_gradients(linears: Iterable[nn.Linear]) -> Iterator[None]:
    """Compute gradients at the inputs of some linears in bfloat16; what they return stays the same."""
    with ExitStack() as stack:
        for linear in linears:
            stack.enter_context(with_forward(linear, partial(_forward, linear)))
        yield


@contextmanager
def with_half_outputs(linears: Iterable[nn.Linear]) -> Iterator[None]:
    """Compute what some linears return in bfloat16; no gradients."""
    with ExitStack() as stack:
        for linear in linears:
            stack.enter_context(with_forward(linear, partial(_half_forward, linear)))
        yield


def half_product(values: Tensor, matrix: Tensor) -> Tensor:
    """``values [..., n] @ matrix [n, m]``, in the type of ``values``."""
    return (values.to(torch.bfloat16) @ matrix.to(torch.bfloat16)).to(values.dtype)


def half_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``inputs [..., n]`` through ``weight [m, n]``, in the type of the inputs."""
    found = half_product(inputs, weight.T)
    return found if bias is None else found + bias


def _half_forward(linear: nn.Linear, inputs: Tensor) -> Tensor:
    return half_linear(inputs, linear.weight, linear.bias)


def _forward(linear: nn.Linear, inputs: Tensor) -> Tensor:
    output: Tensor = _HalfGradient.apply(inputs, linear.weight, linear.bias)  # type: ignore[no-untyped-call]
    return output


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weight.to(torch.bfloat16))
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (weight,) = ctx.saved_tensors
        return half_product(gradient, weight), None, None
