"""A model in which some tensors compute as MNN would: stored weights and, under memory low, int8 activations.

Nothing is put into the model: a linear with such tensors is given another forward function, which asks for the stored
weights when it runs. So a plan takes no more memory than what `StoredWeights` keeps and the weight in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from qplan.formats import QuantFormat
from qplan.model.discovery import Site
from qplan.model.half_products import half_linear
from qplan.model.load import LoadedModel
from qplan.model.mixture import RoutedLinear
from qplan.model.replace import bfloat16_values, with_forward, with_lookups
from qplan.rounding import Int8Activations
from qplan.rounding.stored import row_pieces
from qplan.sensitivity.half_arithmetic import half_linear_of_floats
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.settings import Memory
from qplan.tensors import Role

PREFILL = Int8Activations()
"""Int8 activations of a prefill with a scale per token: what losses are measured with by default."""


@contextmanager
def apply_formats(
    loaded: LoadedModel,
    formats: Mapping[str, QuantFormat],
    memory: Memory,
    activations: Int8Activations = PREFILL,
    *,
    stored: StoredWeights | None = None,
    engine_embedding: bool = False,
    half: bool = False,
) -> Iterator[None]:
    """Make tensors compute as MNN would, one tensor or a whole plan; the model is restored exactly afterwards.

    A tied head's stored weights also serve as embedding; int8 activations only affect its matrix product. An untied
    embedding has a format of its own.
    Tensors stored as floats keep float activations, as on the engine. Parameters stay what they are: only what the
    linears and the embedding compute is changed.

    Args:
        loaded: the model.
        formats: by tensor name; tensors not named stay FP32.
        memory: ``low`` for int8 activations, ``normal`` for float ones.
        activations: the int8 activations to emulate under ``low``.
        stored: cache of stored weights, to share between calls.
        engine_embedding: also round an untied embedding that has no format to bfloat16, as MNN exports it.
        half: compute products of bfloat16, but for routers; see `qplan.model.half_products`.

    Raises:
        InputError: a tensor cannot have its format, or the engine garbles it with these activations.
    """
    stored = stored or StoredWeights(loaded)
    linears: dict[nn.Linear, _Linear] = {}
    rounding = _Rounding(activations)
    embedding = loaded.card.embedding
    for name, fmt in formats.items():
        stored.check(name, fmt)
        if embedding is not None and name == embedding.name:
            continue
        module = loaded.linear(name)
        product = half_linear if half and loaded.card.tensor(name).role is not Role.ROUTER else functional.linear
        together = activations.path == "prefill"
        floats = partial(half_linear_of_floats, together=together) if activations.half else product
        linear = linears.setdefault(module, _Linear(module, stored, rounding, product, floats))
        block = None if memory == "normal" or fmt.is_float else activations.block(fmt)
        linear.parts.append(_Part(name, loaded.sites[name], fmt, block))
    with ExitStack() as stack:
        if embedding is not None and embedding.name in formats:
            look_up = partial(stored.look_up, embedding.name, formats[embedding.name])
            stack.enter_context(with_lookups(loaded, look_up))
        elif engine_embedding and loaded.card.embedding_weights:
            stack.enter_context(with_lookups(loaded, lambda plain, ids: bfloat16_values(plain(ids))))
        for module, linear in linears.items():
            stack.enter_context(with_forward(module, linear.forward))
        head = loaded.architecture.head
        if head in formats and loaded.card.tensor(head).tied:
            stack.enter_context(with_lookups(loaded, partial(stored.look_up, head, formats[head])))
        yield


@dataclass(frozen=True)
class _Part:
    """A tensor's rows of a linear."""

    name: str
    site: Site
    format: QuantFormat
    block: int | None
    """Features that share a scale of int8 activations, 0 for all; None for float activations."""


@dataclass
class _Rounding:
    """Rounds activations, once for linears that share an input: they run one after the other."""

    activations: Int8Activations
    _last: Tensor | None = None
    _rounded: dict[tuple[int, bool], Tensor] = field(default_factory=dict)

    def of(self, x: Tensor, block: int, *, routed: bool) -> Tensor:
        """See `Int8Activations.round`."""
        if self._last is not x:
            self._last, self._rounded = x, {}
        if (block, routed) not in self._rounded:
            self._rounded[block, routed] = self.activations.round(x, block, routed=routed)
        return self._rounded[block, routed]


@dataclass
class _Linear:
    """Computes a linear with stored weights for some of its rows."""

    module: nn.Linear
    stored: StoredWeights
    rounding: _Rounding
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """Of int8 activations."""
    product_of_floats: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    parts: list[_Part] = field(default_factory=list)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``; a large matrix some rows at a time."""
        if len(row_pieces(self.module.out_features, self.module.in_features)) > 1:
            return self._by_rows(x)
        weight, bias = self._weight().to(x), self.module.bias
        covered = sum(part.site.stop - part.site.start for part in self.parts) == self.module.out_features
        blocks = {part.block for part in self.parts} | (set() if covered else {None})
        if len(blocks) == 1:
            return self._product(x, blocks.pop(), weight, bias)
        output = self.product_of_floats(x, weight, bias)
        for block in sorted(block for block in blocks if block is not None):
            for part in self.parts:
                if part.block == block:
                    own = None if bias is None else bias[part.site.rows]
                    output[..., part.site.rows] = self._product(x, block, weight[part.site.rows], own)
        return output

    def _weight(self) -> Tensor:
        """float32 ``[out_features, in_features]``."""
        first = self.parts[0]
        if len(self.parts) == 1 and first.site.stop - first.site.start == self.module.out_features:
            return self.stored.get(first.name, first.format)
        weight = self.module.weight.detach().clone()
        for part in self.parts:
            weight[part.site.rows] = self.stored.get(part.name, part.format).to(weight)
        return weight

    def _by_rows(self, x: Tensor) -> Tensor:
        outputs, at = [], 0
        for part in (*sorted(self.parts, key=lambda part: part.site.start), None):
            start = self.module.out_features if part is None else part.site.start
            if start > at:
                bias = None if self.module.bias is None else self.module.bias[at:start]
                outputs.append(self.product_of_floats(x, self.module.weight[at:start], bias))
            if part is None:
                break
            for rows, weight in self.stored.pieces(part.name, part.format):
                own = slice(start + rows.start, start + rows.stop)
                bias = None if self.module.bias is None else self.module.bias[own]
                outputs.append(self._product(x, part.block, weight.to(x), bias))
            at = part.site.stop
        return torch.cat(outputs, -1)

    def _product(self, x: Tensor, block: int | None, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Some rows of the output, from the input as the engine computes with it."""
        if block is None:
            return self.product_of_floats(x, weight, bias)
        rounded = self.rounding.of(x, block, routed=isinstance(self.module, RoutedLinear))
        return self.product(rounded, weight, bias)
