"""Loading: what is found in a model, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from qplan.card import ModelCard
from qplan.errors import InputError
from qplan.model import source
from qplan.model.load import LoadedModel, load_model
from qplan.model.registry import ARCHITECTURES
from qplan.tensors import Role


def _copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_linear_is_found_once(tiny: LoadedModel) -> None:
    covered: dict[str, int] = {}
    for spec in tiny.card.tensors:
        site = tiny.sites[spec.name]
        covered[site.module] = covered.get(site.module, 0) + spec.out_features
        assert tiny.weight(spec.name).shape == (spec.out_features, spec.in_features)
    linears = {path: m.out_features for path, m in tiny.model.named_modules() if isinstance(m, nn.Linear)}
    assert covered == linears


def test_a_relative_folder_is_named_as_it_holds_anywhere(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _copy(model_folders["qwen2"], tmp_path)
    (tmp_path / "current").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for given in ("copy", "./copy", "copy/", "copy/../copy"):
        assert source.lasting(given) == str(folder)
    assert source.lasting("current") == str(tmp_path / "current")
    assert load_model("copy").card.source == str(folder)
    monkeypatch.chdir(folder)
    assert source.lasting(".") == str(folder)
    assert source.lasting("../copy") == str(folder)
    assert source.lasting("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    with pytest.raises(InputError, match="the model has no name"):
        load_model("")


def test_names_on_both_sides(qwen2: LoadedModel) -> None:
    first, *_, down, head = qwen2.card.tensors
    assert (first.name, first.op_name, first.layer, first.kind, first.role, first.bias) == (
        "model.layers.0.self_attn.q_proj",
        "/layers.0/self_attn/q_proj/Linear",
        0,
        "q_proj",
        Role.ATTENTION,
        True,
    )
    assert (down.op_name, down.role, down.bias) == ("/layers.2/mlp/down_proj/Linear", Role.MLP, False)
    assert (head.name, head.op_name, head.layer, head.role, head.tied) == (
        "lm_head",
        "/lm/lm_head/Linear",
        None,
        Role.HEAD,
        True,
    )


def test_a_fused_matrix_is_three_tensors_as_in_mnn(tiny_models: dict[str, LoadedModel]) -> None:
    phi3 = tiny_models["phi3"]
    query, key, value = phi3.card.tensors[:3]
    assert [t.op_name for t in (query, key, value)] == [f"/layers.0/self_attn/{p}_proj/Linear" for p in "qkv"]
    assert [t.out_features for t in (query, key, value)] == [64, 32, 32]
    fused = phi3.linear(query.name).weight
    assert torch.equal(torch.cat([phi3.weight(t.name) for t in (query, key, value)]), fused)
    # the exporter gives each part a bias of zeros
    assert query.bias
    assert phi3.bias(query.name) is None


def test_the_card_counts(qwen2: LoadedModel, llama: LoadedModel) -> None:
    assert qwen2.card.embedding_weights == 0
    assert llama.card.embedding_weights == llama.embedding.weight.numel()
    assert llama.card.norm_weights == 64 * 7
    card = llama.card
    assert card.parameters == sum(t.weights for t in card.tensors) + card.embedding_weights + card.norm_weights
    assert (card.vocabulary, card.context, card.model_type) == (320, 128, "llama")
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_the_model_is_ready_to_measure(tiny: LoadedModel) -> None:
    assert not tiny.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in tiny.model.parameters())
    logits = tiny.logits(torch.arange(8).view(2, 4))
    assert logits.shape == (2, 4, 320)


def test_the_hash_is_of_the_content_not_the_path(
    tmp_path: Path, model_folders: dict[str, Path], qwen2: LoadedModel
) -> None:
    folder = _copy(model_folders["qwen2"], tmp_path)
    assert source.sha256_model(folder) == qwen2.card.sha256
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert source.sha256_model(folder) != qwen2.card.sha256


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(tmp_path: Path, model_folders: dict[str, Path], value: float) -> None:
    folder = _copy(model_folders["qwen2"], tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds 1 NaN or infinite"):
        load_model(str(folder))


def test_missing_weights_are_not_made_up(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    folder = _copy(model_folders["llama"], tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing keys in the weight files: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(folder))


def test_an_unknown_model_type_lists_the_known(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    folder = _copy(model_folders["qwen2"], tmp_path)
    _edit_config(folder, model_type="gpt_oss")
    with pytest.raises(InputError, match=r"'gpt_oss' is not supported; supported are .*llama.*qwen2"):
        load_model(str(folder))


def test_a_quantized_checkpoint_is_refused(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    folder = _copy(model_folders["qwen2"], tmp_path)
    _edit_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(InputError, match="already quantized"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", r"has no config\.json"),
        ("model.safetensors", r"no \*\.safetensors files"),
        ("tokenizer.json", "no usable tokenizer"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, model_folders: dict[str, Path], removed: str, message: str) -> None:
    folder = _copy(model_folders["qwen2"], tmp_path)
    (folder / removed).unlink()
    with pytest.raises(InputError, match=message):
        load_model(str(folder))


def test_pickled_weights_are_refused(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    folder = _copy(model_folders["qwen2"], tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="only pickled weights; convert"):
        load_model(str(folder))


def test_a_shard_that_is_not_there_is_named(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    folder = _copy(model_folders["qwen2"], tmp_path)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="model-00001-of-00001"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "./here"])
def test_a_source_that_is_neither_folder_nor_id(name: str) -> None:
    with pytest.raises(InputError, match="folder"):
        load_model(name)


def test_without_a_network_the_remedy_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> str:
        msg = "cannot reach"
        raise LocalEntryNotFoundError(msg)

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InputError, match="hub cannot be reached; check the path, or go online"):
        load_model("owner/name")


def test_a_hub_id_is_fetched_without_pickles(
    monkeypatch: pytest.MonkeyPatch, model_folders: dict[str, Path], qwen2: LoadedModel
) -> None:
    def download(name: str, *, allow_patterns: list[str]) -> str:
        assert name == "owner/name"
        assert "*.bin" not in allow_patterns
        return str(model_folders["qwen2"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_model("owner/name").card.sha256 == qwen2.card.sha256


def test_an_absent_device_is_refused(model_folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="device 'tpu' is not available; this machine has cpu"):
        load_model(str(model_folders["qwen2"]), device="tpu")


def test_the_registry_is_explicit() -> None:
    assert {"qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "phi", "phi3", "stablelm"} <= set(ARCHITECTURES)
    dense = next(rule for rule in ARCHITECTURES["phi"].linears if rule.module == "self_attn.dense")
    assert dense.op_name(4) == "/layers.4/self_attn/o_proj/Linear"


def test_half_precision_is_the_checkpoint_s_own(model_folders: dict[str, Path], tmp_path: Path) -> None:
    half = load_model(str(model_folders["qwen2"])).model.to(torch.float16)
    half.save_pretrained(tmp_path / "half")  # type: ignore[operator]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folders["qwen2"] / name, tmp_path / "half")
    loaded = load_model(str(tmp_path / "half"), dtype="float16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float16}
    with pytest.raises(InputError, match=r"--dtype bfloat16: .* is stored in float16, .* use float32 or float16"):
        load_model(str(tmp_path / "half"), dtype="bfloat16")
    with pytest.raises(InputError, match=r"is stored in float32, .* use float32$"):
        load_model(str(model_folders["qwen2"]), dtype="float16")
