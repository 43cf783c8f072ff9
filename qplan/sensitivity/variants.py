"""A model in which some tensors compute as MNN would: stored weights and, under memory low, int8 activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from qplan.errors import InputError
from qplan.formats import FP32, QuantFormat
from qplan.model.discovery import Site
from qplan.model.load import LoadedModel
from qplan.model.replace import bfloat16_values, with_embedding, with_forward, with_weights
from qplan.quantize import int8_decode, int8_prefill, rtn
from qplan.sensitivity.rounding import Rounder
from qplan.sensitivity.table import Memory

Activation = Literal["prefill", "decode"]
"""Which of the engine's int8 activations: many tokens at a time, or one."""

_QUANTISERS: dict[Activation, Callable[[Tensor], Tensor]] = {"prefill": int8_prefill, "decode": int8_decode}


@dataclass
class StoredWeights:
    """The values that MNN stores for tensors of one model, kept as far as memory is granted.

    Keeps the first ones until full: runs over all variants in the same order would evict each entry before its use.
    """

    loaded: LoadedModel
    rounder: Rounder | None = None
    """Chooses the integers; None rounds to nearest."""
    limit_bytes: int = 1 << 30
    _kept: dict[tuple[str, QuantFormat], Tensor] = field(default_factory=dict)
    _bytes: int = 0

    def get(self, name: str, fmt: QuantFormat) -> Tensor:
        """float32 ``[out_features, in_features]``: a tensor's weight after storage in a format.

        Raises:
            InputError: a format that the engine does not compute right for this tensor.
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
        """float32 ``[rows, in_features]``: some rows of `get`, computed alone where the whole would not be kept.

        Raises:
            InputError: a format that the engine does not compute right for this tensor.
        """
        weight = self.loaded.weight(name)
        if (name, fmt) in self._kept or self._bytes + 4 * weight.numel() <= self.limit_bytes:
            return self.get(name, fmt)[rows]
        self._check(name, fmt)
        if self.rounder is not None:
            return self.rounder.store(name, fmt).dequantize()[rows].to(self.loaded.device)
        return rtn(weight[rows], fmt).dequantize()

    def _check(self, name: str, fmt: QuantFormat) -> None:
        spec = self.loaded.card.tensor(name)
        if fmt != FP32 and not spec.allows(fmt):
            msg = f"{name} [{spec.out_features}, {spec.in_features}] cannot be {fmt}; resolve the format for it first"
            raise InputError(msg)

    def unchanged(self, name: str, fmt: QuantFormat) -> bool:
        """Whether storage keeps every weight of a tensor to the bit."""
        return torch.equal(self.get(name, fmt), self.loaded.weight(name).float())


@contextmanager
def apply_formats(
    loaded: LoadedModel,
    formats: Mapping[str, QuantFormat],
    memory: Memory,
    activation: Activation = "prefill",
    *,
    stored: StoredWeights | None = None,
    engine_embedding: bool = False,
) -> Iterator[None]:
    """Let tensors compute as MNN would; one tensor or a whole plan. The model is restored to the bit.

    A tied head's stored weights are looked up as embedding too; int8 activations only enter its matrix product.
    Tensors stored as floats keep float activations, as on the engine.

    Args:
        loaded: the model.
        formats: by tensor name; tensors not named stay FP32.
        memory: ``low`` for int8 activations, ``normal`` for float ones.
        activation: the engine's path whose int8 activations are meant.
        stored: keeps stored weights between calls.
        engine_embedding: also round an untied embedding to bfloat16, as MNN stores it.

    Raises:
        InputError: a format that a tensor cannot have.
    """
    stored = stored or StoredWeights(loaded)
    with ExitStack() as stack:
        if engine_embedding and loaded.card.embedding_weights:
            stack.enter_context(with_embedding(loaded, bfloat16_values(loaded.embedding.weight.detach())))
        stack.enter_context(with_weights(loaded, {name: stored.get(name, fmt) for name, fmt in formats.items()}))
        if memory == "low":
            quantise = _QUANTISERS[activation]
            for module, sites in _integer_sites(loaded, formats).items():
                stack.enter_context(with_forward(module, _int8_forward(module, sites, quantise)))
        yield


def _integer_sites(loaded: LoadedModel, formats: Mapping[str, QuantFormat]) -> dict[nn.Linear, list[Site]]:
    found: dict[nn.Linear, list[Site]] = {}
    for name, fmt in formats.items():
        if not fmt.is_float:
            found.setdefault(loaded.linear(name), []).append(loaded.sites[name])
    return found


def _int8_forward(
    module: nn.Linear, sites: list[Site], quantise: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """A linear whose input is int8 for the rows of ``sites`` and float for the others."""
    integer_rows = sum(site.stop - site.start for site in sites)
    if integer_rows == module.out_features:
        return lambda x: functional.linear(quantise(x), module.weight, module.bias)

    def mixed(x: Tensor) -> Tensor:
        output = functional.linear(x, module.weight, module.bias)
        rounded = quantise(x)
        for site in sites:
            bias = None if module.bias is None else module.bias[site.rows]
            output[..., site.rows] = functional.linear(rounded, module.weight[site.rows], bias)
        return output

    return mixed
