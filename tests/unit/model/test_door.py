"""What people have in place of a model that can be planned is refused with what it is, from headers and JSON alone."""

from __future__ import annotations

import json
import os
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


UNSUPPORTED = (
    *("qwen2_moe", "mixtral", "olmoe", "deepseek_v3", "deepseek_v2", "gemma3_text", "gemma3", "qwen2_vl", "qwen2_5_vl"),
    *("glm4", "glm", "chatglm", "internlm2", "baichuan", "smollm3", "granite", "olmo2", "qwen3_5", "qwen3_5_text"),
    *("gpt2", "falcon", "bloom", "minicpm", "lfm2", "phimoe", "llama4", "gpt_oss", "mamba"),
)


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_a_model_type_that_is_not_supported_is_named_with_those_that_are(folder: Path, model_type: str) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling_x.X"}
    change(folder, model_type=model_type, architectures=["X"], auto_map=auto_map)
    with pytest.raises(InputError, match=rf"model type '{model_type}' is not supported; supported are .*llama.*qwen2"):
        check_source(str(folder))


def test_a_config_without_a_model_type_says_so(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="has no model_type; give the folder of"):
        check_source(str(folder))


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


@pytest.mark.parametrize("without", [(WEIGHTS,), (WEIGHTS, "config.json", "tokenizer.json")])
def test_a_gguf_file_is_no_checkpoint(folder: Path, without: tuple[str, ...]) -> None:
    (folder / "tiny-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(100))
    check_folder(folder)
    for name in without:
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"a model for llama\.cpp \(tiny-Q4_K_M\.gguf\), .*; give the original"):
        check_folder(folder)
    with pytest.raises(InputError, match=r"tiny-Q4_K_M\.gguf is not a folder; give the folder that holds config\.json"):
        check_source(str(folder / "tiny-Q4_K_M.gguf"))


def test_a_byte_order_mark_is_named(folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(InputError, match=r"config\.json cannot be used: it begins with a byte order mark"):
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


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_its_base_is_not_left_out_in_silence(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")
    with pytest.raises(InputError, match=rf"adapter \({name}\) .*, which would be left out; merge it .*, or take"):
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("[]", "holds a JSON list"),
        ('{"eos_token_id": "</s>"}', r'eos_token_id is "</s>"; expected a token id, a list of them, or null'),
        ('{"eos_token_id": [0, NaN]}', r"eos_token_id is \[0, NaN\]; expected a token id"),
        (POINTER, "Git LFS pointer"),
    ],
)
def test_a_generation_config_that_cannot_be_meant_is_named(folder: Path, content: str, message: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=rf"generation_config\.json.* {message}"):
        check_folder(folder)


def test_a_vocabulary_needs_its_merges(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(InputError, match=r"no usable tokenizer: vocab\.json without merges\.txt"):
        check_folder(folder)
    (folder / "merges.txt").write_text("")
    check_folder(folder)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("../../blobs/gone")])
def test_weights_that_are_no_file_are_named(folder: Path, make: Callable[[Path], None]) -> None:
    (folder / WEIGHTS).unlink()
    make(folder / WEIGHTS)
    with pytest.raises(InputError, match=r"model\.safetensors (cannot be read|does not exist)"):
        check_folder(folder)


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


@pytest.mark.parametrize("kind", ["acme", "mrope"])
def test_an_unknown_rotation_is_named_before_weights_are_read(folder: Path, kind: str) -> None:
    change(folder, rope_scaling={"type": kind, "factor": 2.0})
    with pytest.raises(InputError, match=rf'rope_scaling\.rope_type is "{kind}"; expected .*: default, dynam'):
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


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.bias", "model.norm.weight"])
def test_a_norm_or_bias_that_check_would_take_for_damage_is_named(folder: Path, name: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[name][3] = -1e6
    store(folder, tensors)
    with pytest.raises(InputError, match=rf"{name} holds values up to 1e\+06; from 1,000,000 on"):
        load_model(str(folder))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_weights_of_a_wrapped_model_are_to_be_unwrapped(folder: Path, prefix: str) -> None:
    store(folder, {prefix + key: one for key, one in load_file(folder / WEIGHTS).items()})
    with pytest.raises(InputError, match=rf"they hold {prefix}\S+ and \d+ more instead: save the model again, unwrapp"):
        load_model(str(folder))


def test_weights_that_were_never_filled_in_are_no_model(folder: Path) -> None:
    store(folder, {key: torch.zeros_like(one) for key, one in load_file(folder / WEIGHTS).items()})
    with pytest.raises(InputError, match="computes the same logit for every token of its vocabulary"):
        load_model(str(folder))


def test_a_model_without_finite_logits_is_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name in tensors:
        tensors[name][:] = 6e4
    # products of a few such grow beyond half precision, which a checkpoint in it computes in
    store(folder, {key: one.half() for key, one in tensors.items()})
    change(folder, dtype="float16")
    with pytest.raises(InputError, match="NaN or infinite logits of"):
        load_model(str(folder), dtype="float16")


def test_whatever_transformers_raises_is_about_the_folder(folder: Path) -> None:
    change(folder, attention_dropout={"p": 0}, initializer_range="wide")
    with pytest.raises(InputError, match=r"has a config\.json that transformers cannot use: "):
        load_model(str(folder))
    (folder / "tokenizer.json").write_text("{}")
    change(folder, attention_dropout=0.0, initializer_range=0.02)
    with pytest.raises(InputError, match=r"has no usable tokenizer: .*; are its files whole\? Download them again$"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"])
def test_a_file_that_cannot_be_read_is_not_left_out_in_silence(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("gone")
    with pytest.raises(InputError, match=f"{name} is a link to nothing, and would be left out; download"):
        check_folder(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=f"{name} is no regular file"):
        check_folder(folder)


def test_a_config_without_sizes_is_not_filled_in_with_those_of_a_large_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(InputError, match=r"makes model.embed_tokens.weight \[\d+, 4096\], and the weight files"):
        load_model(str(folder))


def test_the_form_of_answers_is_no_matter(folder: Path) -> None:
    tokens = torch.tensor([[5, 6, 7]])
    plain = load_model(str(folder)).logits(tokens)
    change(folder, return_dict=False, torchscript=True, output_attentions=True, output_hidden_states=True)
    assert torch.equal(load_model(str(folder)).logits(tokens), plain)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_end_that_no_answer_can_reach_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    config = json.loads(path.read_text()) if path.is_file() else {}
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    for ends, reached in (([0, vocabulary + 5], True), (vocabulary - 1, True), (vocabulary, False), ([99_999], False)):
        path.write_text(json.dumps(config | {"eos_token_id": ends}))
        if reached:
            check_folder(folder)
            continue
        with pytest.raises(InputError, match=rf"{name}: eos_token_id is .*; expected a token below vocab_size, \d+"):
            check_folder(folder)
