"""Every linear of a model is found, and one that the registry does not know is not passed over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from qplan.errors import InputError
from qplan.model.discovery import Anatomy, dissect
from qplan.model.registry import architecture_of
from qplan.tensors import Role
from tests.support.tiny_models import EVERY_BUILDER


def made(name: str) -> Any:
    """A tiny model as transformers makes it, with its experts still stacked."""
    torch.manual_seed(0)
    return EVERY_BUILDER[name]()


def dissected(model: Any) -> Anatomy:
    return dissect(model, model.config, architecture_of(model.config.model_type))


@pytest.mark.parametrize("name", sorted(set(EVERY_BUILDER) - {"qwen3_moe"}))
def test_tensors_and_what_else_weighs_are_the_whole_model(name: str) -> None:
    model = made(name)
    anatomy = dissected(model)
    linears = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {site.module for site in anatomy.sites.values()} == linears
    head = anatomy.tensors[-1]
    assert head.role is Role.HEAD
    assert head.tied == (anatomy.embedding_weights == 0)
    biases = sum(p.numel() for path, p in model.named_parameters() if path.endswith("bias"))
    weights = sum(spec.weights for spec in anatomy.tensors)
    assert weights + anatomy.embedding_weights + anatomy.norm_weights + biases == model.num_parameters()


def test_parts_of_a_fused_matrix_cover_it() -> None:
    model = made("phi3")
    anatomy = dissected(model)
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    sites = [anatomy.sites[name] for name in names]
    assert {site.module for site in sites} == {"model.layers.0.self_attn.qkv_proj"}
    whole = model.get_submodule(sites[0].module).weight
    assert torch.equal(torch.cat([whole[site.rows] for site in sites]), whole)
    # the exporter gives each a bias of zeros
    assert all(spec.bias for spec in anatomy.tensors if spec.name in names)


def test_a_linear_that_nobody_knows_is_named() -> None:
    model = made("llama")
    model.model.layers[1].adapter = nn.Linear(4, 4)
    with pytest.raises(InputError, match=r"model\.layers\.1\.adapter .* left out of the plan"):
        dissected(model)


def test_a_matrix_that_is_no_linear_is_named() -> None:
    model = made("llama")
    model.model.layers[0].extra = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(InputError, match=r"extra of shape \(2, 3\) is neither"):
        dissected(model)


def test_a_promised_module_that_is_absent_or_something_else_is_named() -> None:
    model = made("llama")
    model.model.layers[0].mlp.up_proj = nn.Identity()
    with pytest.raises(InputError, match="up_proj is a Identity, not a linear"):
        dissected(model)
    other = replace(architecture_of("llama"), final_norm="model.norm", head="model.head")
    with pytest.raises(InputError, match=r"no module 'model\.head'"):
        dissect(made("llama"), made("llama").config, other)
