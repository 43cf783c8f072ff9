"""Puts other weights into a model for the length of a block, and takes them out again exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from qplan.errors import InputError
from qplan.model.load import LoadedModel
from qplan.model.streamed import Streamed, looked_up, looks_rows_up

LookUp = Callable[[Tensor], Tensor]
"""From ids ``[...]`` to rows ``[..., hidden]`` of an embedding's weight."""


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
def with_lookups(loaded: LoadedModel, change: Callable[[LookUp, Tensor], Tensor]) -> Iterator[None]:
    """Look tokens up otherwise; a head tied to the embedding keeps its weight.

    What the model multiplies looked up rows by (Gemma's factor, a folded head's) stays.

    Args:
        loaded: the model.
        change: from the model's own lookup, and ids, to the rows that take their place.

    Raises:
        InputError: an embedding that does something unknown to the rows.
    """
    module = loaded.embedding
    factor = getattr(module, "embed_scale", None)
    if factor is None and not looks_rows_up(module):
        msg = f"{type(module).__name__} is an embedding that qplan does not know; its rows cannot be replaced"
        raise InputError(msg)

    def forward(ids: Tensor) -> Tensor:
        rows = change(partial(looked_up, module), ids)
        return rows if factor is None else rows * torch.as_tensor(factor).to(rows)

    with with_forward(module, forward):
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
    if isinstance(module, Streamed):
        with module.with_weight(weight):
            yield
        return
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
    """Values of any weights after storage as bfloat16, as MNN stores an untied embedding."""
    return weight.to(torch.bfloat16).to(weight.dtype)
