"""Puts other weights into a model for the length of a block, and takes them out again exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from qplan.model.load import LoadedModel


@contextmanager
def with_weights(loaded: LoadedModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Compute with other weights ``[out_features, in_features]`` for some tensors, by tensor name.

    A tied head's weight is also the embedding's: both uses get the new one. The original parameter objects are put
    back afterwards, so the restored model is the same to the bit.

    Raises:
        ValueError: a weight of another shape.
    """
    with ExitStack() as stack:
        for module, changed in _by_module(loaded, weights).items():
            stack.enter_context(_parameter(module, changed))
            if module is loaded.head and loaded.card.tensor(loaded.architecture.head).tied:
                stack.enter_context(_parameter(loaded.embedding, changed))
        yield


@contextmanager
def with_embedding(loaded: LoadedModel, weight: Tensor) -> Iterator[None]:
    """Look tokens up in another embedding ``[vocabulary, hidden]``; a head tied to it keeps its own."""
    with _parameter(loaded.embedding, weight):
        yield


def _by_module(loaded: LoadedModel, weights: Mapping[str, Tensor]) -> dict[nn.Linear, Tensor]:
    changed: dict[nn.Linear, Tensor] = {}
    for name, weight in weights.items():
        module, site = loaded.linear(name), loaded.sites[name]
        expected = (site.stop - site.start, module.in_features)
        if tuple(weight.shape) != expected:
            msg = f"{name}: weight of shape {tuple(weight.shape)}, expected {expected}"
            raise ValueError(msg)
        if expected[0] == module.out_features:
            changed[module] = weight
        else:
            changed.setdefault(module, module.weight.detach().clone())[site.rows] = weight
    return changed


@contextmanager
def _parameter(module: nn.Module, weight: Tensor) -> Iterator[None]:
    original = module.weight
    if not isinstance(original, nn.Parameter):
        msg = f"{type(module).__name__}.weight is not a parameter"
        raise TypeError(msg)
    fresh = weight.to(device=original.device, dtype=original.dtype)
    module.weight = nn.Parameter(fresh, requires_grad=original.requires_grad)
    try:
        yield
    finally:
        module.weight = original


@contextmanager
def with_first_layers(loaded: LoadedModel, count: int) -> Iterator[None]:
    """Compute without the decoder layers after the first ``count``: the final norm reads what these give."""
    path, _, name = loaded.architecture.layers.rpartition(".")
    parent = loaded.model.get_submodule(path)
    layers = parent.get_submodule(name)
    setattr(parent, name, nn.ModuleList(loaded.layers[:count]))
    try:
        yield
    finally:
        setattr(parent, name, layers)


@contextmanager
def with_forward(module: nn.Module, forward: object) -> Iterator[None]:
    """Call ``forward`` in place of the module's own."""
    previous = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if previous is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = previous


def bfloat16_values(weight: Tensor) -> Tensor:
    """Values of a weight after storage as bfloat16, as MNN stores an untied embedding."""
    return weight.to(torch.bfloat16).to(weight.dtype)
