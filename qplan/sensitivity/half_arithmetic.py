"""A model computed in fp16, as MNN's CPU back end does on ARM under ``precision: low``.

Source: MNN 3.6.1's ``source/backend/arm82`` and ``CPUAttention.cpp``, ``CPULayerNorm.cpp``; held against its aarch64
wheel under qemu in reports/targets. Tensors between ops are fp16. Norms and activation functions compute in fp32 and
round what they return. Products of int8 codes add up exactly and are rounded once. Products of floats, in linears with
float weights and in attention, add up in fp16, one fused multiplication and addition after the other: that is where
fp16 loses most: `qplan.sensitivity.half_products`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from qplan.model.load import LoadedModel
from qplan.model.replace import with_forward
from qplan.sensitivity.half_products import accumulate_half

_KEYS = 64
"""Keys of a block of attention."""

_aten = torch.ops.aten

_KEPT = frozenset(
    {
        *(_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.add_.Tensor, _aten.mul_.Tensor),
        *(_aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.baddbmm.default),
        *(_aten.silu.default, _aten.gelu.default, _aten.tanh.default, _aten._softmax.default),  # noqa: SLF001
        *(_aten.index_add.default, _aten.index_add_.default),
    }
)
"""Operations whose results are numbers that the engine stores, and not copies of what is stored."""


def half_values(x: Tensor) -> Tensor:
    """Values as fp16 holds them, in the type of ``x``."""
    return x.half().to(x.dtype)


def half_linear_of_floats(inputs: Tensor, weight: Tensor, bias: Tensor | None, *, together: bool) -> Tensor:
    """``inputs [..., tokens, n]`` through a linear of float weights ``[m, n]``; see `accumulate_half`."""
    found = accumulate_half(inputs, weight, together=together)
    return found if bias is None else found + bias


@contextmanager
def in_half(loaded: LoadedModel, layer: int) -> Iterator[None]:
    """Compute a decoder layer, and what is around all of them, in fp16.

    Linears compute what they are told to, and round what they return.

    Args:
        loaded: the model.
        layer: which; the number of layers for what comes after them.
    """
    mode = _StoredInHalf()
    with ExitStack() as stack:
        for module in _leaves(loaded, layer):
            stack.enter_context(with_forward(module, partial(mode.exactly, module.forward)))
        stack.enter_context(mode)
        stack.enter_context(_HalfAttention(mode))
        yield


def _leaves(loaded: LoadedModel, layer: int) -> Iterator[nn.Module]:
    """Modules without parts, but for those of other layers: linears, norms, activation functions, the embedding."""
    others = {id(module) for index, one in enumerate(loaded.layers) if index != layer for module in one.modules()}
    for module in loaded.model.modules():
        if id(module) not in others and not any(True for _ in module.children()):
            yield module


class _StoredInHalf(TorchDispatchMode):
    """Rounds what operations return to fp16."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._exact = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        found = func(*args, **(kwargs or {}))
        if self._exact or func not in _KEPT or not found.is_floating_point():
            return found
        return found.copy_(half_values(found)) if func in _IN_PLACE else half_values(found)

    def exactly(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """What a function returns, of which only the end is stored."""
        self._exact += 1
        try:
            found = forward(*args, **kwargs)
            if isinstance(found, Tensor):
                return half_values(found) if found.is_floating_point() else found
            return tuple(half_values(each) for each in found) if isinstance(found, tuple) else found
        finally:
            self._exact -= 1


_IN_PLACE = frozenset({_aten.add_.Tensor, _aten.mul_.Tensor, _aten.index_add_.default})


@dataclass(frozen=True)
class _Heads:
    """Attention of all heads: ``[batch, heads, tokens, head_dim]``."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    scale: float

    def attend(self) -> Tensor:
        """``[batch, heads, tokens, head_dim]``, in blocks of keys.

        The query is brought below 1, so that sums stay in range. What a block adds is weighted by the largest score so
        far, and fades where a larger one follows.
        """
        peak = max(1.0, float(self.query.abs().max()))
        query = half_values(self.query / peak)
        found, highest, total = torch.zeros_like(self.query), None, torch.zeros_like(self.query[..., :1])
        for start in range(0, self.key.shape[-2], _KEYS):
            keys = slice(start, start + _KEYS)
            scores = half_values(_product(query, self.key[..., keys, :].transpose(-2, -1)) * (self.scale * peak))
            scores = scores + self._hidden(scores, keys)
            own = scores.amax(-1, keepdim=True)
            before, highest = highest, own if highest is None else torch.maximum(highest, own)
            # a window may have left out all keys so far
            top = highest.masked_fill(highest == -math.inf, 0.0)
            faded = torch.zeros_like(own) if before is None else (before - top).exp()
            weights = (scores - top).exp()
            total = total * faded + weights.sum(-1, keepdim=True)
            found = half_values(_product(half_values(weights), self.value[..., keys, :]) + found * faded)
        return half_values(found / total)

    def _hidden(self, scores: Tensor, keys: slice) -> Tensor:
        """What is added to the scores of some keys, so that masked ones count for nothing."""
        if self.mask is not None:
            mask = self.mask[..., keys]
            return mask if mask.dtype != torch.bool else torch.zeros_like(scores).masked_fill(~mask, -math.inf)
        if not self.causal:
            return torch.zeros_like(scores)
        tokens, own = scores.shape[-2], scores.shape[-1]
        later = torch.arange(keys.start, keys.start + own) > torch.arange(tokens).unsqueeze(1)
        return torch.zeros_like(scores).masked_fill(later.to(scores.device), -math.inf)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left [..., n, k] @ right [..., k, m]`` in fp16, term by term."""
    one, other = left.half(), right.half()
    total = torch.zeros(*one.shape[:-1], other.shape[-1], dtype=torch.float16, device=left.device)
    for index in range(one.shape[-1]):
        total.addcmul_(one[..., index : index + 1], other[..., index : index + 1, :])
    return total.to(left.dtype)


class _HalfAttention(TorchFunctionMode):
    """Computes scaled dot products of attention in fp16."""

    def __init__(self, stored: _StoredInHalf) -> None:
        super().__init__()
        self._stored = stored

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._stored.exactly(_attention, *args, **(kwargs or {}))


def _attention(  # noqa: PLR0917 - as torch names and orders them
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    """The arguments of `torch.nn.functional.scaled_dot_product_attention`."""
    del dropout_p  # nothing is trained
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return _Heads(query, key, value, attn_mask, is_causal, scale).attend()
