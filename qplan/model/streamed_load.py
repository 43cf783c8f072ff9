"""Loads a model of which only norms and biases are in memory; see `qplan.model.streamed`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qplan.errors import InputError
from qplan.model.checkpoint import Checkpoint
from qplan.model.stock import blamed_on, refuse_unexpected
from qplan.model.streamed import WeightSource, stream

_IGNORED = "_keys_to_ignore_on_load_unexpected"
"""Where transformers' classes keep patterns of tensors that they have no use for."""

_ROTATIONS = r"rotary_emb\.inv_freq$"
"""What old versions of transformers saved, and new ones compute."""


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Give modules that are made within the block parameters without values; buffers, such as rotations, are real."""
    register = nn.Module.register_parameter

    def without_values(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.data.to("meta"), requires_grad=False)
        register(module, name, parameter)

    with patch.object(nn.Module, "register_parameter", without_values):
        yield


def make_empty(folder: Path, view: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - a PreTrainedModel
    """Make transformers' own class of a folder, without values in its parameters.

    Args:
        folder: the model's, for messages.
        view: what `inert_view` makes of it.
        dtype: type that the model computes in.

    Raises:
        InputError: transformers cannot build a model from its configuration.
    """
    with blamed_on(folder, "cannot be loaded as a causal language model"), _parameters_on_meta():
        config = AutoConfig.from_pretrained(view, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=dtype)
    return model.requires_grad_(requires_grad=False)


def fill(
    model: nn.Module, checkpoint: Checkpoint, paths: Collection[str], dtype: torch.dtype, device: torch.device
) -> None:
    """Give a model without values those of a checkpoint: some modules read their weights when they use them.

    Args:
        model: the model, from `make_empty`; changed in place.
        checkpoint: its weight files.
        paths: modules, linears and embeddings, whose weights stay there.
        dtype: type that the model computes in.
        device: device that it computes on.

    Raises:
        InputError: weights that are absent, of another shape, or left over.
    """
    used: set[str] = set()
    names = _names_by_parameter(model)
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            full = f"{path}.{name}"
            # a tied head has the embedding's parameter, and the files may hold it under either name
            keys = checkpoint.keys_of(next(filter(checkpoint.has, names[id(parameter)]), full))
            if checkpoint.shape(keys) != tuple(parameter.shape):
                msg = (
                    f"{checkpoint.folder}: config.json makes {full} {list(parameter.shape)}, and the weight files "
                    f"hold {list(checkpoint.shape(keys))}; are they of the same model?"
                )
                raise InputError(msg)
            used.update((*keys, *names[id(parameter)]))
            if name == "weight" and path in paths and isinstance(module, nn.Linear | nn.Embedding):
                stream(module, WeightSource(checkpoint, keys, dtype, device))
            else:
                value = nn.Parameter(checkpoint.stacked(keys).to(dtype, copy=True), requires_grad=False)
                module.register_parameter(name, value)
    ignored = [re.compile(one) for one in (*(getattr(model, _IGNORED, None) or ()), _ROTATIONS)]
    left = sorted(key for key in checkpoint.file_of.keys() - used if not any(one.search(key) for one in ignored))
    refuse_unexpected(checkpoint.folder, left, type(model).__name__)


def _names_by_parameter(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter, by its identity."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found
