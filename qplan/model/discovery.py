"""Finds the linear tensors of a loaded model and proves that none is missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qplan.errors import InputError
from qplan.model.checkpoint import Checkpoint
from qplan.model.mixture import mixture_of
from qplan.model.registry import HEAD_OP, Architecture, LinearRule
from qplan.tensors import Role, TensorSpec


@dataclass(frozen=True)
class Site:
    """Where a tensor's values are inside the Hugging Face model."""

    module: str
    """Path of the ``nn.Linear``."""
    start: int
    """First row of the module's weight."""
    stop: int
    """One past the last row."""

    @property
    def rows(self) -> slice:
        """The rows of weight and bias."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Anatomy:
    """The tensors of a model, where they are, and how many other weights there are."""

    tensors: tuple[TensorSpec, ...]
    sites: Mapping[str, Site]
    """By tensor name."""
    embedding_weights: int
    """Number of weights of an untied embedding; 0 if tied."""
    norm_weights: int
    embedding: TensorSpec | None
    """The untied embedding; None if tied."""


def dissect(model: nn.Module, config: Any, architecture: Architecture) -> Anatomy:  # noqa: ANN401 - a HF config
    """Find every linear of the decoder layers and the head.

    Raises:
        InputError: a module that the architecture promises is absent, or the model holds one that it does not know.
    """
    tensors: list[TensorSpec] = []
    sites: dict[str, Site] = {}
    layers = _module(model, architecture.layers)
    for index, layer in enumerate(layers.children()):
        mixture = mixture_of(layer, architecture.mixture)
        for rule in architecture.linears_of(None if mixture is None else len(mixture.experts)):
            path = f"{architecture.layers}.{index}.{rule.module}"
            linear = _linear(model, path)
            site = Site(path, *_rows(rule, linear, config))
            name = f"{architecture.layers}.{index}.{rule.tensor}"
            tensors.append(_spec(name, rule.op_name(index), rule.role, linear, site, layer=index))
            sites[name] = site
    head = _linear(model, architecture.head)
    embedding = _embedding(model, architecture.embedding)
    tied = is_tied(head.weight, embedding)
    site = Site(architecture.head, 0, head.out_features)
    tensors.append(_spec(architecture.head, HEAD_OP, Role.HEAD, head, site, tied=tied))
    sites[architecture.head] = site
    _check_coverage(model, sites)
    return Anatomy(
        tuple(tensors),
        sites,
        0 if tied else embedding.numel(),
        _norm_weights(model, {site.module for site in sites.values()}, architecture.embedding),
        None if tied else _embedding_spec(architecture.embedding, embedding),
    )


def tie_equal_head(
    model: nn.Module,
    config: Any,  # noqa: ANN401 - a HF config
    architecture: Architecture,
    checkpoint: Checkpoint | None = None,
) -> bool:
    """Make head and embedding one matrix where they hold the same values, as MNN's exporter does.

    The exporter compares values and not what the configuration says, so no plan that keeps the two apart can be built.

    Args:
        model: the model.
        config: its configuration.
        architecture: its architecture.
        checkpoint: where the values are, of a model that has none yet.

    Returns:
        Whether they were two matrices before.

    Raises:
        InputError: a checkpoint with a head of its own, which is said to be the embedding.
    """
    head, weight = _linear(model, architecture.head), _embedding(model, architecture.embedding)
    tied = is_tied(head.weight, weight)
    if checkpoint is None:
        equal = tied or (head.weight.shape == weight.shape and torch.equal(head.weight, weight))
    else:
        keys = [f"{path}.weight" for path in (architecture.head, architecture.embedding)]
        alone = tied and not all(map(checkpoint.has, keys))
        equal = alone or checkpoint.equal(*keys)
        if tied and not equal:
            msg = (
                f"{checkpoint.folder}: tie_word_embeddings is true, and the weight files hold a {keys[0]} of its own; "
                "set it to false, or save the model again with save_pretrained"
            )
            raise InputError(msg)
    if tied or not equal:
        return False
    head.weight = weight
    # a copy of the model is saved and loaded as what it now is
    config.tie_word_embeddings = True
    return True


def is_tied(first: Tensor, second: Tensor) -> bool:
    """Whether two weights share one storage."""
    if first.is_meta or second.is_meta:
        return first is second
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr() and first.shape == second.shape


def has_bias(linear: nn.Linear) -> bool:
    """Whether a linear has a bias, which torch annotates as if it always had one."""
    return "bias" in dict(linear.named_parameters(recurse=False))


def _spec(
    name: str, op_name: str, role: Role, linear: nn.Linear, site: Site, *, layer: int | None = None, tied: bool = False
) -> TensorSpec:
    fused = site.stop - site.start != linear.out_features
    return TensorSpec(
        name=name,
        op_name=op_name,
        layer=layer,
        kind=name.rpartition(".")[2],
        role=role,
        out_features=site.stop - site.start,
        in_features=linear.in_features,
        # the exporter gives each part of a fused matrix a bias of zeros if it has none
        bias=fused or has_bias(linear),
        tied=tied,
    )


def _rows(rule: LinearRule, linear: nn.Linear, config: Any) -> tuple[int, int]:  # noqa: ANN401
    if rule.part is None:
        return 0, linear.out_features
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    head_size = linear.out_features // (heads + 2 * key_heads)
    query, key = heads * head_size, key_heads * head_size
    return {
        "query": (0, query),
        "key": (query, query + key),
        "value": (query + key, query + 2 * key),
    }[rule.part]


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        msg = f"the model has no module {path!r}, which its model type promises; is it a modified architecture?"
        raise InputError(msg) from None


def _linear(model: nn.Module, path: str) -> nn.Linear:
    module = _module(model, path)
    if not isinstance(module, nn.Linear):
        msg = f"{path} is a {type(module).__name__}, not a linear; qplan reads unquantized checkpoints without adapters"
        raise InputError(msg)
    return module


def _embedding(model: nn.Module, path: str) -> nn.Parameter:
    module = _module(model, path)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        msg = f"{path} is a {type(module).__name__} without a weight, expected an embedding"
        raise InputError(msg)
    return weight


def _embedding_spec(path: str, weight: nn.Parameter) -> TensorSpec:
    rows, width = weight.shape
    kind = path.rpartition(".")[2]
    return TensorSpec(path, "", None, kind, Role.EMBEDDING, rows, width, bias=False)


def _check_coverage(model: nn.Module, sites: Mapping[str, Site]) -> None:
    covered: dict[str, int] = {}
    for site in sites.values():
        covered[site.module] = covered.get(site.module, 0) + site.stop - site.start
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and covered.get(path) != module.out_features:
            msg = (
                f"{path} is a linear that qplan's registry does not know for this model type; "
                "it would be left out of the plan. Add it to qplan/model/registry.py"
            )
            raise InputError(msg)


def _norm_weights(model: nn.Module, linears: set[str], embedding: str) -> int:
    total = 0
    for path, module in model.named_modules():
        if path in linears or path == embedding:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() != 1:
                msg = f"{path}.{name} of shape {tuple(parameter.shape)} is neither a linear, an embedding nor a norm"
                raise InputError(msg)
            total += parameter.numel() if name == "weight" else 0
    return total
