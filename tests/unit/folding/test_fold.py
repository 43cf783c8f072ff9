"""Folding: other weights, the same function, for every model type that qplan plans for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from qplan.errors import InputError
from qplan.folding.fold import FoldSite, fold, fold_sites, save_folded
from qplan.model.load import LoadedModel, load_model
from qplan.model.registry import ARCHITECTURES
from qplan.model.source import sha256_model
from tests.support.tiny_models import EVERY_BUILDER, VOCABULARY, save_model

TOKENS = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(3))


def _random_scales(sites: tuple[FoldSite, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {site.name: torch.randn(site.channels, generator=generator).mul(0.7).exp() for site in sites}


def _relative(folded: LoadedModel, original: LoadedModel) -> float:
    expected = original.logits(TOKENS).double()
    return float((folded.logits(TOKENS).double() - expected).norm() / expected.norm())


def test_every_model_type_is_tried() -> None:
    assert {name.partition(",")[0] for name in EVERY_BUILDER} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", sorted(EVERY_BUILDER))
def test_the_function_stays_and_every_weight_changes(name: str, tmp_path: Path) -> None:
    original = load_model(str(save_model(name, tmp_path / "model")))
    before = {key: value.clone() for key, value in original.model.state_dict().items()}
    sites = fold_sites(original)
    folded = fold(original, _random_scales(sites))
    assert _relative(folded, original) <= 1e-5
    readers = [reader for site in sites for reader in site.readers]
    sources = {rule.source for rule in original.architecture.folds}
    assert len(readers) == len(set(readers))
    # all inputs of linears are folded but those behind a nonlinearity that scales do not pass
    unread = {spec.kind for spec in original.card.tensors if spec.name not in readers}
    left = {"phi": {"fc2"}, "qwen3_moe": {"gate", "gate_up_proj", "down_proj"}}
    assert unread == left.get(name, set())
    assert {"self_attn.v_proj", "input_layernorm"} <= sources
    for reader in readers:
        change = (folded.weight(reader) - original.weight(reader)).norm() / original.weight(reader).norm()
        assert change > 0.3
    # each site matters alone: one that is not undone by its source would show
    for site in sites[-5:]:
        assert _relative(fold(original, {site.name: torch.full((site.channels,), 3.0)}), original) <= 1e-5
    assert all(torch.equal(value, before[key]) for key, value in original.model.state_dict().items())


def test_a_tied_head_is_undone_after_the_lookup(qwen2: LoadedModel, llama: LoadedModel) -> None:
    scales = {"lm_head": torch.linspace(0.5, 4, 64)}
    folded = fold(qwen2, scales)
    factor = folded.embedding_scale
    assert factor is not None
    assert torch.allclose(factor, 1 / scales["lm_head"])
    assert folded.head.weight is folded.embedding.weight
    with pytest.raises(AssertionError):
        # without the factor the lookups would be others
        folded.embedding.get_buffer("qplan_scale").fill_(1.0)
        assert _relative(folded, qwen2) <= 1e-5
    assert fold(llama, scales).embedding_scale is None
    twice = fold(fold(qwen2, scales), scales)
    assert _relative(twice, qwen2) <= 1e-5


def test_a_folded_folder_is_the_same_model(qwen2: LoadedModel, tmp_path: Path) -> None:
    folded = fold(qwen2, _random_scales(fold_sites(qwen2)))
    save_folded(folded, tmp_path / "folded")
    loaded = load_model(str(tmp_path / "folded"))
    assert torch.equal(loaded.logits(TOKENS), folded.logits(TOKENS))
    assert loaded.tokenizer.get_vocab() == qwen2.tokenizer.get_vocab()
    assert loaded.card.sha256 != qwen2.card.sha256
    with safe_open(tmp_path / "folded" / "model.safetensors", "pt") as stored:
        assert {stored.get_tensor(key).dtype for key in stored.keys()} == {torch.float32}  # noqa: SIM118
    assert json.loads((tmp_path / "folded" / "config.json").read_text())["dtype"] == "float32"
    # the factor is part of the model's identity, and of no other file
    scale = tmp_path / "folded" / "embedding_scale.npy"
    before = sha256_model(tmp_path / "folded")
    scale.write_bytes(scale.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    assert sha256_model(tmp_path / "folded") != before
    scale.write_bytes(b"no numbers")
    with pytest.raises(InputError, match="cannot be read"):
        load_model(str(tmp_path / "folded"))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"lm_head": torch.ones(3)}, "expected 64 positive numbers"),
        ({"lm_head": torch.linspace(0, 1, 64)}, "expected 64 positive numbers"),
        ({"model.layers.0.self_attn.k_proj": torch.ones(64)}, "not a place where scales can be folded"),
    ],
)
def test_impossible_scales_are_refused(qwen2: LoadedModel, scales: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fold(qwen2, scales)
