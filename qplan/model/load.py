"""Loads a causal language model, checked, with its card: in FP32, or in its checkpoint's own half precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto import configuration_auto
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from qplan.card import ModelCard
from qplan.errors import InputError
from qplan.model.discovery import Anatomy, Site, dissect, has_bias, tie_equal_head
from qplan.model.embedding_scale import embedding_scale, read_embedding_scale, set_embedding_scale
from qplan.model.inert import check_own_classes, inert_view
from qplan.model.mixture import split_experts
from qplan.model.registry import Architecture, architecture_of
from qplan.model.source import fetch, read_config, sha256_model
from qplan.settings import DTypeName

ADAPTER_FILE = "adapter_config.json"
"""Where peft describes weights that are added to those of another model."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class LoadedModel:
    """A Hugging Face model in eval mode, without gradients, and everything that qplan knows about it.

    In FP32 wherever losses are measured; half precision is for gradients alone.
    """

    model: nn.Module
    tokenizer: Any
    """Hugging Face tokenizer."""
    card: ModelCard
    folder: Path
    """Folder of its files, which an exporter reads."""
    architecture: Architecture
    sites: dict[str, Site]
    """Where each tensor's values are, by tensor name."""
    own_classes: tuple[str, ...] = ()
    """Classes that the folder brings code for, which was left alone."""
    tied_by_values: bool = False
    """Whether head and embedding are two matrices in the checkpoint, and one here since they are equal."""

    @property
    def device(self) -> torch.device:
        """Device that the weights are on."""
        return self.embedding.weight.device

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers in order."""
        return list(self.model.get_submodule(self.architecture.layers).children())

    @property
    def embedding(self) -> nn.Embedding:
        """The input embedding."""
        module = self.model.get_submodule(self.architecture.embedding)
        if not isinstance(module, nn.Embedding):
            msg = f"{self.architecture.embedding} is a {type(module).__name__}, expected an embedding"
            raise InputError(msg)
        return module

    @property
    def embedding_scale(self) -> Tensor | None:
        """Factor ``[hidden]`` of what the embedding looks up, where a tied head is folded; None elsewhere."""
        return embedding_scale(self.embedding)

    @property
    def head(self) -> nn.Linear:
        """The linear that makes the logits."""
        return self.linear(self.architecture.head)

    def linear(self, name: str) -> nn.Linear:
        """The module that holds a tensor, by the tensor's name."""
        module = self.model.get_submodule(self.sites[name].module)
        if not isinstance(module, nn.Linear):
            msg = f"{name} is a {type(module).__name__}, expected a linear"
            raise InputError(msg)
        return module

    def weight(self, name: str) -> Tensor:
        """Weight ``[out_features, in_features]`` of a tensor (a view)."""
        return self.linear(name).weight[self.sites[name].rows]

    def bias(self, name: str) -> Tensor | None:
        """Bias ``[out_features]`` of a tensor (a view), None if the model has none."""
        linear = self.linear(name)
        return linear.bias[self.sites[name].rows] if has_bias(linear) else None

    def logits(self, tokens: Tensor) -> Tensor:
        """Next-token logits ``[rows, seq_len, vocabulary]`` of token ids ``[rows, seq_len]``."""
        with torch.no_grad():
            output: Tensor = self.model(input_ids=tokens.to(self.device), use_cache=False).logits
        return output


def load_model(source: str, *, device: str = "cpu", dtype: DTypeName = "float32") -> LoadedModel:
    """Load a model and prove that its weights are whole.

    Args:
        source: local folder or hub id.
        device: ``cpu``, ``cuda`` or ``mps``.
        dtype: type that the model computes in; a half precision only if the checkpoint is stored in it.

    Raises:
        InputError: not a usable model; the message says why and what to do.
    """
    torch_device = check_device(device)
    folder = fetch(source)
    config = read_config(folder / "config.json")
    if "quantization_config" in config:
        msg = f"{source} is already quantized; give the original checkpoint in fp32, bf16 or fp16"
        raise InputError(msg)
    _check_dtype(source, dtype, config)
    architecture = architecture_of(str(config.get("model_type")))
    _check_whole(folder, source)
    stock = stock_classes(str(config["model_type"]))
    check_own_classes(folder, stock)
    _check_class(folder, config, stock["AutoModelForCausalLM"])
    sha256 = sha256_model(folder)
    with inert_view(folder) as view:
        model = _load_weights(folder, view, getattr(torch, dtype))
        tokenizer = load_tokenizer(folder, view)
    own = check_own_classes(folder, stock | {"AutoTokenizer": type(tokenizer).__name__})
    check_finite(model)
    split_experts(model, model.config, architecture)
    tied = tie_equal_head(model, model.config, architecture)
    anatomy = dissect(model, model.config, architecture)
    card = _card(source, sha256, model, anatomy)
    model = model.to(torch_device).eval().requires_grad_(requires_grad=False)
    loaded = LoadedModel(model, tokenizer, card, folder, architecture, dict(anatomy.sites), own, tied)
    scale = read_embedding_scale(folder)
    if scale is not None:
        set_embedding_scale(loaded.embedding, scale)
    return loaded


def check_device(device: str) -> torch.device:
    """Turn a device's name into a torch device.

    Raises:
        InputError: no such device here.
    """
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not usable.get(device.partition(":")[0], False):
        names = ", ".join(name for name, present in usable.items() if present)
        msg = f"device {device!r} is not available; this machine has {names}"
        raise InputError(msg)
    return torch.device(device)


def _check_dtype(source: str, dtype: str, config: dict[str, Any]) -> None:
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if dtype not in ("float32", stored):
        msg = (
            f"--dtype {dtype}: {source} is stored in {stored}, and rounding it would make another model; "
            f"use float32{'' if stored == 'float32' else f' or {stored}'}"
        )
        raise InputError(msg)


def check_finite(model: nn.Module) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        InputError: names the first such tensor.
    """
    for name, parameter in model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            msg = f"{name} holds {bad} NaN or infinite values of {parameter.numel()}; the checkpoint is broken"
            raise InputError(msg)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers within the block; afterwards restore the user's setting."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _check_whole(folder: Path, source: str) -> None:
    """Refuse what is only a part of a model.

    Raises:
        InputError: an adapter, beside a base model or alone.
    """
    adapter = folder / ADAPTER_FILE
    if adapter.is_file():
        base = read_config(adapter).get("base_model_name_or_path") or "its base model"
        msg = (
            f"{source} holds an adapter ({ADAPTER_FILE}) for {base}, which would be left out; merge it (peft's "
            "merge_and_unload, then save_pretrained), or take the adapter's files out to plan the base model alone"
        )
        raise InputError(msg)


def stock_classes(model_type: str) -> dict[str, str]:
    """Names of transformers' own classes for a model type, by what they are used for."""
    return {
        "AutoConfig": str(vars(configuration_auto)["CONFIG_MAPPING_NAMES"][model_type]),
        "AutoModelForCausalLM": str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]),
    }


def _check_class(folder: Path, config: Mapping[str, Any], stock: str) -> None:
    """Refuse a checkpoint of another class than the causal language model that it would be loaded as.

    Raises:
        InputError: e.g. a classifier, or an embedding model without a head.
    """
    named = config.get("architectures")
    if isinstance(named, list) and named and stock not in named:
        msg = (
            f"{folder} is a {named[0]}, and would be loaded as {stock}; qplan plans causal language models that "
            "transformers itself knows"
        )
        raise InputError(msg)


def _load_weights(folder: Path, view: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - a PreTrainedModel
    try:
        with without_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                view,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        model, info = loaded
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        msg = f"{folder} cannot be loaded as a causal language model: {error}"
        raise InputError(msg) from error
    # Hugging Face fills what a checkpoint lacks with random numbers and a warning
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info.get(what):
            names = ", ".join(str(key) for key in sorted(info[what], key=str)[:3])
            msg = f"{folder}: {what.replace('_', ' ')} in the weight files: {names}; download the model again"
            raise InputError(msg)
    return model


def load_tokenizer(folder: Path, view: Path) -> Any:  # noqa: ANN401 - a PreTrainedTokenizerBase
    """Load a model's tokenizer; no code of the folder runs.

    Args:
        folder: the model's, for messages.
        view: what `inert_view` makes of it.

    Raises:
        InputError: there is none, or none that transformers can load by itself.
    """
    # Hugging Face makes an empty tokenizer where the files are not there
    if not any((view / name).is_file() for name in _TOKENIZER_FILES):
        msg = f"{folder} has no usable tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there"
        raise InputError(msg)
    try:
        return AutoTokenizer.from_pretrained(view, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        msg = f"{folder} has no usable tokenizer: {error}"
        raise InputError(msg) from error


def _card(source: str, sha256: str, model: Any, anatomy: Anatomy) -> ModelCard:  # noqa: ANN401
    return ModelCard(
        source=source,
        sha256=sha256,
        architecture=type(model).__name__,
        model_type=model.config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=anatomy.tensors[-1].out_features,
        context=model.config.max_position_embeddings,
        tensors=anatomy.tensors,
        embedding_weights=anatomy.embedding_weights,
        norm_weights=anatomy.norm_weights,
    )
