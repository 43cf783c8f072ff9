"""Moves channel scales between weights: the model computes the same function, but its weights quantize differently.

The source of a channel is divided by a positive number, and its readers are multiplied by it (SmoothQuant, arXiv
2211.10438; AWQ, arXiv 2306.00978). Sources and readers are a norm and the linears behind it, rows of up and columns
of down, values and columns of the output projection, the final norm and the head. `qplan.model.registry` lists where
this is possible.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qplan.errors import InputError
from qplan.model.embedding_scale import embedding_scale, set_embedding_scale, write_embedding_scale
from qplan.model.inert import inert_view
from qplan.model.load import LoadedModel
from qplan.model.mixture import stacked_state
from qplan.model.registry import FoldKind, FoldRule
from qplan.model.source import INDEX_FILE
from qplan.model.stock import without_bars
from qplan.model.streamed import Change, Streamed
from qplan.model.streamed_save import save_streamed
from qplan.run.safetensors_file import ALL

_ROWS = 4096
"""Rows to compute in float64 at a time."""


@dataclass(frozen=True)
class FoldSite:
    """A place of a model where channel scales can be chosen freely."""

    name: str
    """The first tensor that reads the channels."""
    kind: FoldKind
    source: str
    """Path of the norm that makes the channels, or of the linear whose rows do."""
    rows: slice
    """Rows of the source that make the channels."""
    readers: tuple[str, ...]
    """Every tensor that reads the channels."""
    channels: int
    """Number of free scales."""
    repeats: tuple[int, int] = (1, 1)
    """Query heads per value head, and number of value heads; ``(1, 1)`` at other kinds of sites."""
    tied: bool = False
    """Whether the reader is also the embedding, whose lookups must be divided again, see `embedding_scale`."""

    def expand(self, scale: Tensor) -> Tensor:
        """Expand free scales ``[channels]`` to the readers' columns ``[in_features]``."""
        shared, heads = self.repeats
        return scale.reshape(heads, 1, -1).expand(heads, shared, -1).reshape(-1)


def fold_sites(loaded: LoadedModel) -> tuple[FoldSite, ...]:
    """Every place of a model where scales can be folded, in order of execution."""
    architecture = loaded.architecture
    sites = []
    for index in range(len(loaded.layers)):
        prefix = f"{architecture.layers}.{index}."
        sites += [_site(loaded, prefix, rule) for rule in _rules(loaded, prefix)]
    head = loaded.card.tensor(architecture.head)
    everything = slice(0, head.in_features)
    sites.append(
        FoldSite(head.name, "norm", architecture.final_norm, everything, (head.name,), head.in_features, tied=head.tied)
    )
    return tuple(sites)


def fold(loaded: LoadedModel, scales: Mapping[str, Tensor]) -> LoadedModel:
    """Copy a model with scales folded in: the same function, up to FP32 rounding.

    Args:
        loaded: the model; it is not changed.
        scales: factors of the readers' columns by site name, positive ``[channels]``.

    Raises:
        InputError: there is no such site, or scales are not one positive, finite number per channel.
    """
    sites = {site.name: site for site in fold_sites(loaded)}
    copied = replace(loaded, model=copy.deepcopy(loaded.model))
    for name, scale in scales.items():
        if name not in sites:
            msg = f"{name} is not a place where scales can be folded; such places are {', '.join(list(sites)[:4])}, ..."
            raise InputError(msg)
        exact = scale.to(device=loaded.device, dtype=torch.float64)
        if exact.shape != (sites[name].channels,) or not (torch.isfinite(exact) & (exact > 0)).all():
            msg = f"{name}: scales of shape {tuple(exact.shape)}, expected {sites[name].channels} positive numbers"
            raise InputError(msg)
        _fold_site(copied, sites[name], exact)
    return copied


def save_folded(folded: LoadedModel, folder: Path) -> None:
    """Write a folded model and its tokenizer as a Hugging Face folder, in FP32 so that nothing is lost.

    Args:
        folded: the model, from `fold`.
        folder: a new folder.
    """
    if folded.streamed:
        save_streamed(folded, folder)
    else:
        model: Any = folded.model
        with without_bars():
            model.save_pretrained(folder, state_dict=stacked_state(model))
    with inert_view(folded.folder) as view:
        for path in sorted(view.iterdir()):
            weights = path.suffix == ".safetensors" or path.name == INDEX_FILE
            if not weights and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
    scale = embedding_scale(folded.embedding)
    if scale is not None:
        write_embedding_scale(folder, scale)


def _rules(loaded: LoadedModel, prefix: str) -> Iterator[FoldRule]:
    parallel = bool(getattr(loaded.model.config, "use_parallel_residual", False))
    for rule in loaded.architecture.folds:
        # layers with experts have none of the dense MLP's tensors
        if rule.parallel in {None, parallel} and all(prefix + reader in loaded.sites for reader in rule.readers):
            yield rule


def _site(loaded: LoadedModel, prefix: str, rule: FoldRule) -> FoldSite:
    readers = tuple(prefix + reader for reader in rule.readers)
    source = prefix + rule.source
    if rule.kind == "norm":
        width = loaded.linear(readers[0]).in_features
        return FoldSite(readers[0], rule.kind, source, slice(0, width), readers, width)
    place = loaded.sites[source]
    start = (place.start + place.stop) // 2 if rule.half else place.start
    channels = place.stop - start
    repeats = (1, 1)
    if rule.kind == "value":
        config: Any = loaded.model.config
        heads = config.num_key_value_heads
        repeats = (config.num_attention_heads // heads, heads)
    return FoldSite(readers[0], rule.kind, place.module, slice(start, place.stop), readers, channels, repeats)


def _fold_site(loaded: LoadedModel, site: FoldSite, scale: Tensor) -> None:
    offset = loaded.architecture.norm_offset if site.kind == "norm" else 0.0
    source = loaded.model.get_submodule(site.source)
    divide = partial(_divide, rows=site.rows, scale=scale)
    for name, added in (("weight", offset), ("bias", 0.0)):
        _change(source, name, Change(partial(divide, added=added), by_row=False))
    columns = site.expand(scale)
    for reader in site.readers:
        module, place = loaded.linear(reader), loaded.sites[reader].rows
        every = place == slice(0, module.out_features)
        _change(module, "weight", Change(partial(_multiply, rows=ALL if every else place, columns=columns), every))
    if site.tied:
        if isinstance(loaded.embedding, Streamed):
            loaded.embedding.change(Change(partial(_multiply, rows=ALL, columns=columns), by_row=True))
        before = embedding_scale(loaded.embedding)
        factor = 1 / scale if before is None else before.to(torch.float64) / scale
        set_embedding_scale(loaded.embedding, factor)


def _change(module: nn.Module, name: str, change: Change) -> None:
    """Change a parameter in place, if there is one; of a streamed weight, whenever it is read."""
    if name == "weight" and isinstance(module, Streamed):
        module.change(change)
        return
    parameter = dict(module.named_parameters(recurse=False)).get(name)
    if parameter is not None:
        change.change(parameter.data)


def _divide(values: Tensor, *, rows: slice, scale: Tensor, added: float) -> None:
    """Divide some rows ``[channels, ...]`` by ``scale [channels]``, as if ``added`` were part of each value."""
    divisors = scale.reshape(-1, *[1] * (values.dim() - 1))
    for part, divisor in zip(values[rows].split(_ROWS), divisors.split(_ROWS), strict=True):
        part.copy_((part.to(torch.float64) + added) / divisor - added)


def _multiply(values: Tensor, *, rows: slice, columns: Tensor) -> None:
    """Multiply the columns of some rows ``[..., in_features]`` by ``columns [in_features]``."""
    for part in values[rows].split(_ROWS):
        part.copy_(part.to(torch.float64) * columns)
