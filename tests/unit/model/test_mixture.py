"""Mixtures of experts: the same function with one linear per expert, and back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from qplan.errors import InputError
from qplan.folding.fold import fold, fold_sites, save_folded
from qplan.model.load import LoadedModel, load_model
from qplan.model.mixture import Expert, MixtureOfExperts, RoutedLinear
from qplan.tensors import Role
from tests.support.tiny_models import VOCABULARY, save_model

TOKENS = torch.randint(VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("qwen3_moe", tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module")
def mixed(folder: Path) -> LoadedModel:
    return load_model(str(folder))


def _hugging_face(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager").eval()


def _logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def test_the_function_is_hugging_faces(folder: Path, mixed: LoadedModel) -> None:
    theirs, ours = _logits(_hugging_face(folder), TOKENS), mixed.logits(TOKENS)
    # to the bit but for matrix products of other numbers of rows
    assert (ours - theirs).norm() <= 1e-7 * theirs.norm()
    exact = _logits(_hugging_face(folder, torch.float64), TOKENS)
    split = load_model(str(folder)).model.double()
    assert (_logits(split, TOKENS) - exact).norm() <= 1e-15 * exact.norm()


def test_every_matrix_is_a_tensor_of_its_own(folder: Path, mixed: LoadedModel) -> None:
    layer = [spec for spec in mixed.card.tensors if spec.layer == 1]
    assert [spec.op_name for spec in layer[4:8]] == [
        "/layers.1/mlp/gate/Linear",
        "/expert/1_0/gate_up_proj_linear",
        "/expert/1_0/down_proj_linear",
        "/expert/1_1/gate_up_proj_linear",
    ]
    assert [spec.name for spec in layer[4:7]] == [
        "model.layers.1.mlp.gate",
        "model.layers.1.mlp.experts.0.gate_up_proj",
        "model.layers.1.mlp.experts.0.down_proj",
    ]
    assert [spec.role for spec in layer[4:7]] == [Role.ROUTER, Role.EXPERT, Role.EXPERT]
    assert [spec.expert for spec in layer] == [None] * 5 + [0, 0, 1, 1, 2, 2, 3, 3]
    assert {spec.role for spec in mixed.card.tensors if spec.layer == 0} == {Role.ATTENTION, Role.MLP}
    theirs = _hugging_face(folder).model.layers[1].mlp
    for number in range(4):
        prefix = f"model.layers.1.mlp.experts.{number}"
        assert torch.equal(mixed.weight(f"{prefix}.gate_up_proj"), theirs.experts.gate_up_proj[number])
        assert torch.equal(mixed.weight(f"{prefix}.down_proj"), theirs.experts.down_proj[number])
    assert torch.equal(mixed.weight("model.layers.1.mlp.gate"), theirs.gate.weight)
    # views: splitting takes no memory
    weights = [m.weight for m in mixed.model.modules() if isinstance(m, RoutedLinear)]
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 2


def test_experts_are_given_a_rows_tokens_first_and_zeros_after(mixed: LoadedModel) -> None:
    block = next(module for module in mixed.model.modules() if isinstance(module, MixtureOfExperts))
    seen: list[Tensor] = []
    chosen: list[Tensor] = []
    hooks = [expert.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for expert in block.experts]
    hooks.append(block.gate.register_forward_hook(lambda _, __, out: chosen.append(out.topk(block.chosen).indices)))
    mixed.logits(TOKENS)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 4
    for number, given in enumerate(seen):
        counts = (chosen[0] == number).any(-1).sum(1)
        assert given.shape == (3, max(1, int(counts.max())), 64)
        used = given.any(-1)
        assert torch.equal(used.sum(1), counts)
        assert all(bool(row[:count].all()) for row, count in zip(used, counts.tolist(), strict=True))


def test_an_expert_without_tokens_runs_on_a_zero(mixed: LoadedModel) -> None:
    block = next(module for module in mixed.model.modules() if isinstance(module, MixtureOfExperts))
    shapes: list[tuple[int, ...]] = []
    hooks = [e.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape))) for e in block.experts]
    mixed.logits(TOKENS[:1, :1])
    for hook in hooks:
        hook.remove()
    assert shapes == [(1, 1, 64)] * 4
    expert = block.experts[0]
    assert isinstance(expert, Expert)
    assert not expert(torch.zeros(1, 1, 64)).any()


def test_a_folded_mixture_is_saved_as_hugging_face_keeps_it(folder: Path, mixed: LoadedModel, tmp_path: Path) -> None:
    scales = {site.name: torch.linspace(0.5, 2, site.channels) for site in fold_sites(mixed)}
    folded = fold(mixed, scales)
    save_folded(folded, tmp_path / "folded")
    again = load_model(str(tmp_path / "folded"))
    assert torch.equal(again.logits(TOKENS), folded.logits(TOKENS))
    theirs = _logits(_hugging_face(tmp_path / "folded"), TOKENS)
    original = _logits(_hugging_face(folder), TOKENS)
    assert (theirs - original).norm() <= 1e-5 * original.norm()
    files = [home / "model.safetensors" for home in (folder, tmp_path / "folded")]
    with safe_open(files[0], "pt") as before, safe_open(files[1], "pt") as after:
        assert set(before.keys()) == set(after.keys())


def test_weights_that_the_exporter_normalizes_anyway_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"norm_topk_prob": False})
    )
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(InputError, match="norm_topk_prob is false, and llmexport"):
        load_model(str(tmp_path))
