"""What people have in place of a model that can be planned is refused with what it is, from headers and JSON alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qplan.errors import InputError
from qplan.model.door import check_folder, check_source
from qplan.model.load import load_model
from qplan.model.source import weight_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 988097824\n"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Qwen2: 3 layers, hidden 64, intermediate 128, 4 heads and 2 key heads of 16, 320 tokens."""
    return Path(shutil.copytree(model_folders["qwen2"], tmp_path / "model"))


def change(folder: Path, name: str = "config.json", /, **keys: Any) -> None:
    path = folder / name
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(value | keys), encoding="utf-8")


def store(folder: Path, tensors: Mapping[str, Tensor], name: str = WEIGHTS) -> None:
    save_file({key: one.contiguous() for key, one in tensors.items()}, folder / name, metadata={"format": "pt"})


def test_every_supported_architecture_comes_in(model_folders: dict[str, Path]) -> None:
    for folder in model_folders.values():
        check_folder(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 8, "num_hidden_layers is 8, and the weight files hold 3"),
        ("num_hidden_layers", 2, "num_hidden_layers is 2, and the weight files hold 3"),
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, and the weight files hold 3"),
        ("num_hidden_layers", "3", 'num_hidden_layers is "3"; expected a whole number of at least 1'),
        ("num_hidden_layers", True, "num_hidden_layers is true; expected a whole number"),
        ("num_attention_heads", None, "num_attention_heads is null; expected a whole number"),
        ("num_attention_heads", 5, "num_attention_heads is 5, and model.*shape"),
        ("num_attention_heads", 2, r"num_key_value_heads is 2, and model.*shape \[32, 64\]: 1 would fit"),
        ("num_key_value_heads", 5, r"num_key_value_heads is 5, and model.*shape \[32, 64\]: 2 would fit"),
        ("num_key_value_heads", 0, "num_key_value_heads is 0; expected a whole number of at least 1, or null"),
        ("max_position_embeddings", 0, "max_position_embeddings is 0; expected a whole number of at least 1"),
        ("max_position_embeddings", None, "max_position_embeddings is null"),
        ("max_position_embeddings", 10**40, "max_position_embeddings is 10{40}; expected"),
        ("hidden_size", 63, "hidden_size is 63, and model.*: 64 would fit"),
        ("hidden_size", [64], r"hidden_size is \[64\]; expected a whole number"),
        ("intermediate_size", 256, "intermediate_size is 256, and model.*: 128 would fit"),
        ("vocab_size", 321, "vocab_size is 321, and model.embed_tokens.weight .*: 320 would fit"),
        ("rms_norm_eps", "1e-6", 'rms_norm_eps is "1e-6"; expected a number from 0 to 1'),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is NaN; expected"),
        ("rope_theta", 0, "rope_theta is 0; expected a number above 0"),
        ("rope_scaling", "linear", 'rope_scaling is "linear"; expected an object'),
        ("rope_scaling", {"type": "linear", "factor": "4"}, r'rope_scaling\.factor is "4"; expected a number'),
        ("rope_parameters", {"rope_theta": None}, r"rope_parameters\.rope_theta is null; expected"),
        ("hidden_act", 3, "hidden_act is 3; expected a text"),
        ("tie_word_embeddings", "true", 'tie_word_embeddings is "true"; expected true or false'),
        ("layer_types", ["full_attention"], "layer_types is .*; expected 3 texts"),
        ("pad_token_id", 320, "pad_token_id is 320; expected a token id below vocab_size, 320"),
        ("eos_token_id", ["</s>"], r'eos_token_id is \["</s>"\]; expected a token id, a list of them'),
        ("dtype", "auto", 'dtype is "auto"; expected one of float32, float16, bfloat16'),
        ("torch_dtype", "fp8", 'torch_dtype is "fp8"; expected one of float32'),
        ("model_type", None, "model_type is null; expected a text"),
        ("model_type", ["qwen2"], r'model_type is \["qwen2"\]; expected a text'),
        ("model_type", "x" * 500, "model type 'x{500}' is not supported"),
        ("architectures", "Qwen2ForCausalLM", "architectures is .*; expected a list of texts"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named_with_what_fits(
    folder: Path, key: str, value: object, message: str
) -> None:
    change(folder, **{key: value})
    with pytest.raises(InputError, match=message):
        check_folder(folder)


def test_key_heads_must_divide_heads(model_folders: dict[str, Path], tmp_path: Path) -> None:
    phi3 = Path(shutil.copytree(model_folders["phi3"], tmp_path / "phi3"))
    change(phi3, num_key_value_heads=3)
    with pytest.raises(InputError, match=r"num_key_value_heads is 3, and model.*qkv_proj.*: 2 would fit"):
        check_folder(phi3)
    change(phi3, num_attention_heads=None, num_key_value_heads=None)
    with pytest.raises(InputError, match="num_attention_heads is null"):
        check_folder(phi3)


def test_a_layer_that_is_missing_in_the_middle_is_named(folder: Path) -> None:
    store(folder, {key: one for key, one in load_file(folder / WEIGHTS).items() if ".layers.1." not in key})
    with pytest.raises(InputError, match="num_hidden_layers is 3, and the weight files lack layer 1"):
        check_folder(folder)


QUANTIZED: dict[str, tuple[Callable[[Tensor], dict[str, Tensor]], str]] = {
    "gptq": (lambda w: {".qweight": w.int(), ".scales": w, ".g_idx": w.int()}, "GPTQ or AWQ, by the tensor"),
    "mlx": (lambda w: {".weight": w.int(), ".scales": w, ".biases": w}, "mlx, by the tensor"),
    "bitsandbytes": (lambda w: {".weight": w.to(torch.uint8), ".weight.absmax": w}, "bitsandbytes, by the tensor"),
    "llm.int8": (lambda w: {".weight": w.to(torch.int8), ".SCB": w}, "bitsandbytes, by the tensor"),
    "packed": (lambda w: {".weight_packed": w.int(), ".weight_scale": w}, "compressed-tensors, by the tensor"),
    "modelopt": (
        lambda w: {".weight": w.to(torch.float8_e4m3fn), ".weight_scale": w, ".input_scale": w},
        "ModelOpt or compressed-tensors, by the tensor",
    ),
    "fp8 in blocks": (lambda w: {".weight": w.to(torch.float8_e4m3fn), ".weight_scale_inv": w}, "FP8 in blocks"),
    "fp8": (lambda w: {".weight": w.to(torch.float8_e4m3fn)}, r"q_proj\.weight is stored as F8_E4M3"),
    "int8": (lambda w: {".weight": w.to(torch.int8)}, r"q_proj\.weight is stored as I8"),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_are_known_without_a_word_in_the_config(folder: Path, kind: str) -> None:
    stored, message = QUANTIZED[kind]
    tensors: dict[str, Tensor] = {}
    for key, one in load_file(folder / WEIGHTS).items():
        base = key.removesuffix(".weight")
        tensors |= {base + end: part.clone() for end, part in stored(one).items()} if "q_proj.w" in key else {key: one}
    store(folder, tensors)
    with pytest.raises(InputError, match=rf"is already quantized \(.*{message}.*; give the original checkpoint"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "mlx, by quantization in config.json"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq, by quantization_config in config.json"),
        ({"quantization_config": "yes"}, "quantization_config in config.json"),
        ({"compression_config": {"format": "x"}}, "compression_config in config.json"),
    ],
)
def test_a_config_that_names_a_quantization_is_believed(folder: Path, keys: dict[str, Any], message: str) -> None:
    change(folder, **keys)
    with pytest.raises(InputError, match=rf"already quantized \({message}\)"):
        check_folder(folder)
    change(folder, **dict.fromkeys(keys))
    check_folder(folder)


def test_modelopts_own_file_is_believed(folder: Path) -> None:
    change(folder, "hf_quant_config.json", quantization={"quant_algo": "NVFP4"})
    with pytest.raises(InputError, match=r"already quantized \(NVFP4, by hf_quant_config\.json\)"):
        check_folder(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json", "tokenizer_config.json"])
def test_a_git_lfs_pointer_says_what_to_run(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    with pytest.raises(InputError, match=f"{name} .*Git LFS pointer.* run 'git lfs pull'"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "vocab.txt"])
def test_a_file_larger_than_any_of_its_kind_is_not_read(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as stream:
        stream.truncate(10_000_000_000)
    with pytest.raises(InputError, match=rf"{name} has 10,000,000,000 bytes, more than"):
        check_folder(folder)


def test_a_tokenizer_that_fails_in_use_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": {}}))
    with pytest.raises(InputError, match="has no usable tokenizer: TypeError"):
        load_model(str(folder))


def test_a_cut_download_says_after_how_much(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:100_000])
    with pytest.raises(InputError, match=f"is cut after 100,000 of {len(content):,} bytes"):
        check_folder(folder)
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        check_folder(folder)


def test_an_adapter_alone_is_to_be_merged(folder: Path) -> None:
    change(folder, "adapter_config.json", base_model_name_or_path="acme/base", peft_type="LORA")
    (folder / WEIGHTS).unlink()
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"adapter \(adapter_config.json\) for acme/base, without it; merge it"):
        check_folder(folder)


def test_an_adapter_without_its_config_is_known_by_its_tensors(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    store(folder, tensors | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(8, 64)})
    with pytest.raises(InputError, match=r"weights of an adapter \(.*lora_A\.weight\); merge it"):
        check_folder(folder)


def test_an_embedding_model_is_no_causal_one(folder: Path) -> None:
    change(folder, "config_sentence_transformers.json", similarity_fn_name="cosine")
    with pytest.raises(InputError, match="is a sentence-transformers model"):
        check_folder(folder)


def test_shards_without_their_index_are_not_enough(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=r"without model\.safetensors\.index\.json, which says what is in which"):
        check_folder(folder)


def test_weights_of_another_name_are_not_what_transformers_reads(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "consolidated.safetensors")
    with pytest.raises(InputError, match=r"holds consolidated\.safetensors, and neither model\.safetensors nor"):
        check_folder(folder)
    shutil.copy(folder / "consolidated.safetensors", folder / WEIGHTS)
    assert [path.name for path in weight_files(folder)] == [WEIGHTS]


def test_a_name_longer_than_file_systems_hold_is_refused() -> None:
    with pytest.raises(InputError, match="cannot name a folder: File name too long"):
        check_source("/" + "x" * 300)


def test_the_door_needs_no_torch(folder: Path) -> None:
    script = (
        f"import sys; from qplan.model.door import check_source; check_source({str(folder)!r}); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_an_unknown_activation_is_named_before_weights_are_read(folder: Path) -> None:
    change(folder, hidden_act="swishglu")
    with pytest.raises(InputError, match='hidden_act is "swishglu"; expected an activation of transformers\': swish'):
        load_model(str(folder))


def test_tensors_that_the_class_has_no_use_for_are_refused(folder: Path) -> None:
    store(folder, load_file(folder / WEIGHTS) | {"score.weight": torch.zeros(2, 64), "score.extra": torch.zeros(2)})
    with pytest.raises(InputError, match=r"hold score\.extra and 1 more, which a Qwen2ForCausalLM has no use for"):
        load_model(str(folder))


def test_a_matrix_beyond_fp16_is_named_with_its_largest_value(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = -98765.0
    store(folder, tensors)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj holds values up to 9\.876e\+04, .* ends at 65,504"):
        load_model(str(folder))


def test_a_model_without_finite_logits_is_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"][:] = 3e38
    store(folder, tensors)
    with pytest.raises(InputError, match="NaN or infinite logits of"):
        load_model(str(folder))


def test_whatever_transformers_raises_is_about_the_folder(folder: Path) -> None:
    change(folder, attention_dropout={"p": 0}, initializer_range="wide")
    with pytest.raises(InputError, match=r"has a config\.json that transformers cannot use: "):
        load_model(str(folder))
    (folder / "tokenizer.json").write_text("{}")
    change(folder, attention_dropout=0.0, initializer_range=0.02)
    with pytest.raises(InputError, match="has no usable tokenizer: "):
        load_model(str(folder))
