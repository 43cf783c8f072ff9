"""What people's tools leave in model folders, and is right: it loads, and computes what it did before."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qplan.errors import InputError
from qplan.model.inert import inert_view
from qplan.model.load import LoadedModel, load_model
from qplan.model.source import INDEX_FILE, WEIGHTS_FILE

Change = Callable[[Path], Path | None]
"""Changes a folder in place, or says where it is now."""

TOKENS = torch.arange(12)[None]


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Qwen2, whose head is tied."""
    return Path(shutil.copytree(model_folders["qwen2"], tmp_path / "model"))


@pytest.fixture
def untied(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Llama, whose head is a matrix of its own."""
    return Path(shutil.copytree(model_folders["llama"], tmp_path / "untied"))


def patch(folder: Path, name: str = "config.json", /, drop: tuple[str, ...] = (), **keys: Any) -> None:
    path = folder / name
    value = json.loads(path.read_text(encoding="utf-8")) | keys
    path.write_text(json.dumps({key: one for key, one in value.items() if key not in drop}), encoding="utf-8")


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS_FILE)


def store(folder: Path, tensors: Mapping[str, Tensor], name: str = WEIGHTS_FILE) -> None:
    save_file({key: one.contiguous() for key, one in tensors.items()}, folder / name, metadata={"format": "pt"})


def shard(folder: Path, **metadata: Any) -> None:
    """Split the weights into two files, with an index."""
    tensors, where = weights(folder), dict[str, str]()
    (folder / WEIGHTS_FILE).unlink()
    for part in (0, 1):
        name = f"model-0000{part + 1}-of-00002.safetensors"
        chosen = {key: tensors[key] for key in sorted(tensors)[part::2]}
        store(folder, chosen, name)
        where |= dict.fromkeys(chosen, name)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": where} | metadata))


def shards(folder: Path) -> None:
    shard(folder, metadata={"total_size": 1})


def index_without_metadata(folder: Path) -> None:
    shard(folder)


def index_of_one_file(folder: Path) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": dict.fromkeys(weights(folder), WEIGHTS_FILE)}))


def consolidated_beside(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS_FILE, folder / "consolidated.safetensors")


def trainer_files_beside(folder: Path) -> None:
    for name in ("optimizer.pt", "training_args.bin", "pytorch_model.bin", "x-Q4_K_M.gguf"):
        (folder / name).write_bytes(b"anything")
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "adapter_config.json").write_text("{}")


def stale_shards_beside(folder: Path) -> None:
    tensors = weights(folder)
    store(folder, {key: one + 1 for key, one in tensors.items()})
    shards(folder)
    store(folder, tensors)


def lost_shards_beside(folder: Path) -> None:
    stale_shards_beside(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def no_architectures(folder: Path) -> None:
    patch(folder, drop=("architectures",))


def no_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def empty_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{}")


def no_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def hub_snapshot(folder: Path) -> Path:
    """As huggingface_hub keeps models: links to files named by hashes."""
    blobs, snapshot = (folder.parent / f"hub/models--acme--tiny/{name}" for name in ("blobs", "snapshots/0123abc"))
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        blob = blobs / hashlib.sha256(path.name.encode()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def named(name: str) -> Change:
    return lambda folder: Path(shutil.move(folder, folder.with_name(name)))


def rotary_buffers_of_old(folder: Path) -> None:
    names = (f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(3))
    store(folder, weights(folder) | {name: torch.ones(8) for name in names})


def head_beside_equal_embedding(folder: Path) -> None:
    tensors = weights(folder)
    store(folder, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})


def head_alone(folder: Path) -> None:
    tensors = weights(folder)
    store(folder, tensors | {"lm_head.weight": tensors.pop("model.embed_tokens.weight")})


def tied_without_a_word(folder: Path) -> None:
    # Qwen2's default is untied
    patch(folder, drop=("tie_word_embeddings",))


def double_precision(folder: Path) -> None:
    store(folder, {key: one.double() for key, one in weights(folder).items()})
    patch(folder, dtype="float64")


def another_precision_named(folder: Path) -> None:
    patch(folder, dtype="bfloat16")


@pytest.mark.parametrize(
    "change",
    [
        shards,
        index_without_metadata,
        index_of_one_file,
        consolidated_beside,
        trainer_files_beside,
        stale_shards_beside,
        lost_shards_beside,
        no_architectures,
        no_generation_config,
        empty_generation_config,
        no_tokenizer_config,
        hub_snapshot,
        *map(named, ("my models 模型 (v1)", "[red]x{y}", "-dash", "bge-gte", "a\nb", "50%s #1", "n" * 250)),
        rotary_buffers_of_old,
        head_beside_equal_embedding,
        head_alone,
        tied_without_a_word,
        double_precision,
        another_precision_named,
    ],
)
def test_the_same_model_in_another_form_is_the_same_model(folder: Path, qwen2: LoadedModel, change: Change) -> None:
    loaded = load_model(str(change(folder) or folder))
    assert torch.equal(loaded.logits(TOKENS), qwen2.logits(TOKENS))
    assert loaded.card.tensors == qwen2.card.tensors


@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision_without_the_key_of_today_loads(folder: Path, qwen2: LoadedModel, *, mixed: bool) -> None:
    tensors = weights(folder)
    store(folder, {key: one if mixed and one.dim() == 1 else one.bfloat16() for key, one in tensors.items()})
    patch(folder, drop=("dtype",), torch_dtype="bfloat16")
    loaded = load_model(str(folder))
    difference = (loaded.logits(TOKENS) - qwen2.logits(TOKENS)).norm() / qwen2.logits(TOKENS).norm()
    assert 0 < float(difference) < 0.05
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_a_vocabulary_that_was_padded_or_grown_is_the_models(folder: Path) -> None:
    tensors = weights(folder)
    table = tensors["model.embed_tokens.weight"]
    for rows in (torch.zeros(64, 64), table[:3] * 0.5):
        store(folder, tensors | {"model.embed_tokens.weight": torch.cat([table, rows])})
        patch(folder, vocab_size=320 + len(rows), eos_token_id=320 + len(rows) - 1)
        assert load_model(str(folder)).card.vocabulary == 320 + len(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untied_head_is_tied_only_if_it_equals_the_embedding(untied: Path, dtype: torch.dtype) -> None:
    tensors = {key: one.to(dtype) for key, one in weights(untied).items()}
    table = tensors["model.embed_tokens.weight"]
    for head, tied in ((table.clone(), True), (table * 1.01, False)):
        store(untied, tensors | {"lm_head.weight": head})
        loaded = load_model(str(untied))
        assert (loaded.tied_by_values, loaded.card.tensors[-1].tied) == (tied, tied)


def test_a_head_that_differs_is_used_whatever_the_config_says(untied: Path, llama: LoadedModel) -> None:
    for drop in ((), ("tie_word_embeddings",)):
        patch(untied, drop=drop, tie_word_embeddings=True)
        loaded = load_model(str(untied))
        assert not loaded.card.tensors[-1].tied
        assert torch.equal(loaded.logits(TOKENS), llama.logits(TOKENS))


def test_a_head_that_is_not_there_is_missing_only_where_it_is_said_to_be(folder: Path) -> None:
    patch(folder, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"missing keys in the weight files: lm_head\.weight"):
        load_model(str(folder))


def test_transformers_is_given_one_set_of_weights(folder: Path) -> None:
    stale_shards_beside(folder)
    with inert_view(folder) as view:
        assert [path.name for path in view.iterdir() if "safetensors" in path.name] == [WEIGHTS_FILE]
