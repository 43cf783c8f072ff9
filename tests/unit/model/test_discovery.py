"""Every linear of a model is found, and one that the registry does not know is not passed over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qplan.errors import InputError
from qplan.folding.fold import fold, save_folded
from qplan.model.discovery import Anatomy, dissect, tie_equal_head
from qplan.model.load import load_model
from qplan.model.registry import architecture_of
from qplan.tensors import Role
from tests.support.tiny_models import EVERY_BUILDER, make_tokenizer


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


def _tied_by_values(model: Any) -> bool:
    return tie_equal_head(model, model.config, architecture_of(model.config.model_type))


def test_an_untied_head_that_equals_the_embedding_is_tied() -> None:
    model = made("llama")
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    untied = dissected(model)
    assert not untied.tensors[-1].tied
    assert _tied_by_values(model)
    tied = dissected(model)
    assert tied.tensors[-1].tied
    assert (tied.embedding_weights, untied.embedding_weights) == (0, model.lm_head.weight.numel())
    # now they are one: nothing is left to tie
    assert not _tied_by_values(model)


def test_a_head_that_differs_in_one_value_stays_apart() -> None:
    model = made("llama")
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        model.lm_head.weight[-1, -1] *= 1.0001
    assert not _tied_by_values(model)
    assert not dissected(model).tensors[-1].tied


def test_a_saved_copy_of_a_model_that_was_tied_loads_as_tied(tmp_path: Path) -> None:
    model = made("llama")
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "equal")
    make_tokenizer().save_pretrained(tmp_path / "equal")
    loaded = load_model(str(tmp_path / "equal"))
    assert loaded.tied_by_values
    scales = {"lm_head": torch.linspace(0.5, 2, loaded.head.in_features)}
    save_folded(fold(loaded, scales), tmp_path / "folded")
    again = load_model(str(tmp_path / "folded"))
    assert again.card.tensors == loaded.card.tensors
    assert not again.tied_by_values
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(again.logits(tokens), loaded.logits(tokens), rtol=1e-4, atol=1e-4)
