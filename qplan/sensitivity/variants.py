"""A model in which some tensors compute as MNN would: stored weights and, under memory low, int8 activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from qplan.errors import InputError
from qplan.formats import FP32, QuantFormat
from qplan.model.discovery import Site
from qplan.model.load import LoadedModel
from qplan.model.mixture import RoutedLinear
from qplan.model.replace import bfloat16_values, with_embedding, with_forward, with_weights
from qplan.quantize import Int8Activations
from qplan.quantize.rounder import Rounder
from qplan.settings import Memory

PREFILL = Int8Activations()
"""Int8 activations of a prefill with a scale per token: what losses are measured with by default."""


@dataclass
class StoredWeights:
    """The values that MNN stores for tensors of one model, cached up to a limit.

    The cache keeps the first values until it is full and evicts nothing: repeated passes over all variants in the same
    order would evict each entry before its next use.
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
        self._check(name, fmt)
        value = (self.rounder or Rounder(self.loaded)).store(name, fmt).dequantize().to(self.loaded.device)
        if self._bytes + value.nbytes <= self.limit_bytes:
            self._kept[name, fmt] = value
            self._bytes += value.nbytes
        return value

    def rows(self, name: str, fmt: QuantFormat, rows: slice) -> Tensor:
        """float32 ``[rows, in_features]``: some rows of `get`, computed on their own if the cache has no room for all.

        Raises:
            InputError: the engine does not compute this format correctly for this tensor.
        """
        weight = self.loaded.weight(name)
        if (name, fmt) in self._kept or self._bytes + 4 * weight.numel() <= self.limit_bytes:
            return self.get(name, fmt)[rows]
        self._check(name, fmt)
        return (self.rounder or Rounder(self.loaded)).store(name, fmt, rows).dequantize().to(self.loaded.device)

    def _check(self, name: str, fmt: QuantFormat) -> None:
        spec = self.loaded.card.tensor(name)
        if fmt != FP32 and not spec.allows(fmt):
            msg = f"{name} [{spec.out_features}, {spec.in_features}] cannot be {fmt}; resolve the format for it first"
            raise InputError(msg)

    def unchanged(self, name: str, fmt: QuantFormat) -> bool:
        """Whether storage keeps every weight of a tensor bit for bit."""
        return torch.equal(self.get(name, fmt), self.loaded.weight(name).float())


@contextmanager
def apply_formats(
    loaded: LoadedModel,
    formats: Mapping[str, QuantFormat],
    memory: Memory,
    activations: Int8Activations = PREFILL,
    *,
    stored: StoredWeights | None = None,
    engine_embedding: bool = False,
) -> Iterator[None]:
    """Make tensors compute as MNN would, one tensor or a whole plan; the model is restored exactly afterwards.

    A tied head's stored weights also serve as embedding; int8 activations only affect its matrix product.
    Tensors stored as floats keep float activations, as on the engine.

    Args:
        loaded: the model.
        formats: by tensor name; tensors not named stay FP32.
        memory: ``low`` for int8 activations, ``normal`` for float ones.
        activations: the int8 activations to emulate under ``low``.
        stored: cache of stored weights, to share between calls.
        engine_embedding: also round an untied embedding to bfloat16, as MNN stores it.

    Raises:
        InputError: a tensor cannot have its format, or the engine garbles it with these activations.
    """
    stored = stored or StoredWeights(loaded)
    with ExitStack() as stack:
        if engine_embedding and loaded.card.embedding_weights:
            stack.enter_context(with_embedding(loaded, bfloat16_values(loaded.embedding.weight.detach())))
        stack.enter_context(with_weights(loaded, {name: stored.get(name, fmt) for name, fmt in formats.items()}))
        if memory == "low":
            for module, sites in _integer_sites(loaded, formats, activations).items():
                stack.enter_context(with_forward(module, _int8_forward(module, sites, activations)))
        yield


_Sites = dict[int, list[Site]]
"""Where a linear's integer tensors are, by their activation block."""


def _integer_sites(
    loaded: LoadedModel, formats: Mapping[str, QuantFormat], activations: Int8Activations
) -> dict[nn.Linear, _Sites]:
    found: dict[nn.Linear, _Sites] = {}
    for name, fmt in formats.items():
        if not fmt.is_float:
            sites = found.setdefault(loaded.linear(name), {})
            sites.setdefault(activations.block(fmt), []).append(loaded.sites[name])
    return found


def _int8_forward(module: nn.Linear, sites: _Sites, activations: Int8Activations) -> Callable[[Tensor], Tensor]:
    """A linear whose input is int8 for the rows of ``sites`` and float for the others."""
    routed = isinstance(module, RoutedLinear)
    integer_rows = sum(site.stop - site.start for same in sites.values() for site in same)
    if integer_rows == module.out_features and len(sites) == 1:
        block = next(iter(sites))
        return lambda x: functional.linear(activations.round(x, block, routed=routed), module.weight, module.bias)

    def mixed(x: Tensor) -> Tensor:
        output = functional.linear(x, module.weight, module.bias)
        for block, same in sites.items():
            rounded = activations.round(x, block, routed=routed)
            for site in same:
                bias = None if module.bias is None else module.bias[site.rows]
                output[..., site.rows] = functional.linear(rounded, module.weight[site.rows], bias)
        return output

    return mixed
