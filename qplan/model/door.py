"""Refuses a model folder that cannot be planned, from headers and JSON alone: in about a second, without torch.

What only transformers can tell follows in `qplan.model.load`, which runs this first.
"""

from __future__ import annotations

import os
from pathlib import Path

from qplan.errors import InputError
from qplan.model.config_fit import check_fits
from qplan.model.config_values import check_agreement, check_end, check_generation, check_values
from qplan.model.headers import TensorHeader, check_no_pointer, read_headers
from qplan.model.inert import CONFIG_FILE, GENERATION_CONFIG_FILE, TEMPLATE_FILE, VIEWED
from qplan.model.quantized import check_unquantized
from qplan.model.registry import architecture_of
from qplan.model.source import MOST_JSON_BYTES, local_folder, read_config, weight_files

ADAPTER_FILE = "adapter_config.json"
"""Where peft describes weights that are added to those of another model."""

_VOCABULARY_FILE, _MERGES_FILE = "vocab.json", "merges.txt"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", _VOCABULARY_FILE, "vocab.txt")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_TENSORS = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector")
_EMBEDDER_FILES = ("config_sentence_transformers.json", "1_Pooling")
"""What sentence-transformers adds to a model that it makes vectors with."""

_MOST_TEMPLATE_BYTES = 1 << 20
"""The longest chat templates have some ten thousand."""


def check_source(source: str) -> None:
    """Refuse what cannot be a model, without loading or fetching anything; a hub id is checked for its form alone.

    Raises:
        InputError: neither a folder nor a hub id, or a folder that `check_folder` refuses.
    """
    folder = local_folder(source)
    if folder is not None:
        check_folder(folder)


def check_folder(folder: Path) -> None:
    """Refuse a folder whose configuration and headers show that it cannot be planned.

    Raises:
        InputError: an adapter, an embedding model, a quantized checkpoint, an unknown model type, no tokenizer, files
            that are pointers, empty or cut, or a configuration that is wrong or another model's.
    """
    _check_whole_model(folder)
    path = folder / CONFIG_FILE
    config = read_config(path)
    for name in VIEWED:
        if (folder / name).is_file():
            check_no_pointer(folder / name)
            _check_size(folder / name)
        elif os.path.lexists(folder / name):
            kind = "no regular file" if (folder / name).exists() else "a link to nothing"
            msg = f"{folder / name} is {kind}, and would be left out; download the model again, or remove it"
            raise InputError(msg)
    check_values(path, config)
    check_end(path, config, config.get("vocab_size"))
    generation = folder / GENERATION_CONFIG_FILE
    if generation.is_file():
        ends = read_config(generation)
        check_generation(generation, ends)
        check_end(generation, ends, config.get("vocab_size"))
    # the configuration may name a quantization whose layout is no safetensors file's
    check_unquantized(folder, config, {})
    if config.get("model_type") is None:
        msg = f"{path} has no model_type; give the folder of a Hugging Face causal language model"
        raise InputError(msg)
    architecture = architecture_of(config["model_type"])
    headers = read_headers(weight_files(folder))
    _check_no_adapter_tensors(folder, headers)
    check_unquantized(folder, config, headers)
    check_fits(path, config, headers, architecture)
    check_agreement(path, config)
    check_tokenizer_there(folder)


def check_tokenizer_there(folder: Path) -> None:
    """Refuse a folder without a tokenizer's files: Hugging Face makes an empty tokenizer then.

    Raises:
        InputError: names the files of which one is needed, or what is needed beside one.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        msg = f"{folder} has no usable tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there"
        raise InputError(msg)
    others = [name for name in _TOKENIZER_FILES if name != _VOCABULARY_FILE and (folder / name).is_file()]
    if not others and not (folder / _MERGES_FILE).is_file():
        msg = f"{folder} has no usable tokenizer: {_VOCABULARY_FILE} without {_MERGES_FILE}; download that as well"
        raise InputError(msg)


def _check_size(path: Path) -> None:
    """Refuse a file that libraries would read whole into memory, and that no model needs as large."""
    most = _MOST_TEMPLATE_BYTES if path.name == TEMPLATE_FILE else MOST_JSON_BYTES
    size = path.stat().st_size
    if size > most:
        msg = f"{path} has {size:,} bytes, more than the {most:,} that such a file can need; download the model again"
        raise InputError(msg)


def _check_whole_model(folder: Path) -> None:
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    if gguf is not None and not any(folder.glob("*.safetensors")):
        msg = (
            f"{folder} holds a model for llama.cpp ({gguf.name}), as a rule already quantized; give the original "
            "checkpoint, a Hugging Face folder"
        )
        raise InputError(msg)
    adapter = folder / ADAPTER_FILE
    weights = next((name for name in _ADAPTER_WEIGHTS if (folder / name).exists()), None)
    if adapter.is_file() or weights:
        base = read_config(adapter).get("base_model_name_or_path") if adapter.is_file() else None
        merge = "merge it (peft's merge_and_unload, then save_pretrained)"
        if (folder / CONFIG_FILE).is_file():
            rest = f"which would be left out; {merge}, or take the adapter's files out to plan the base model alone"
        else:
            rest = f"without it; {merge}, and give the merged model's folder"
        what = ADAPTER_FILE if adapter.is_file() else weights
        msg = f"{folder} holds an adapter ({what}) for {base or 'its base model'}, {rest}"
        raise InputError(msg)
    embedder = next((name for name in _EMBEDDER_FILES if (folder / name).exists()), None)
    if embedder:
        msg = (
            f"{folder} is a sentence-transformers model ({embedder}), which makes vectors of texts; qplan plans causal "
            "language models, which make texts"
        )
        raise InputError(msg)


def _check_no_adapter_tensors(folder: Path, headers: dict[str, TensorHeader]) -> None:
    for name in headers:
        if name.startswith("base_model.") or any(part in f"{name}." for part in _ADAPTER_TENSORS):
            msg = (
                f"{folder} holds the weights of an adapter ({name}); merge it into its base model (peft's "
                "merge_and_unload, then save_pretrained)"
            )
            raise InputError(msg)
