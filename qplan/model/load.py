"""Loads a causal language model, checked, with its card: in FP32, or in its checkpoint's own half precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from qplan.card import ModelCard
from qplan.cost.free import free_memory
from qplan.errors import InputError
from qplan.formats import LARGEST_PLAUSIBLE
from qplan.model.checkpoint import Checkpoint
from qplan.model.discovery import Anatomy, Site, dissect, has_bias, tie_equal_head
from qplan.model.door import check_folder, check_tokenizer_there
from qplan.model.embedding_scale import embedding_scale, read_embedding_scale, set_embedding_scale
from qplan.model.finite import all_finite
from qplan.model.headers import read_headers
from qplan.model.inert import check_own_classes, inert_view
from qplan.model.mixture import split_experts
from qplan.model.registry import Architecture, architecture_of
from qplan.model.source import fetch, lasting, read_config, sha256_model, weight_files
from qplan.model.stock import blamed_on, check_builds, check_class, load_weights, stock_classes
from qplan.model.streamed import Streamed
from qplan.model.streamed_load import fill, make_empty
from qplan.run.safetensors_file import ALL
from qplan.settings import DTypeName

_TRIED_TOKENS = 4
_WORDS = "the quick brown fox"
_AGAIN = "are its files whole? Download them again"


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
    streamed: bool = False
    """Whether weights of linears and of the embedding are read when they are used, see `qplan.model.streamed`."""

    def within(self, context: int) -> LoadedModel:
        """The same model, of which no sequence is longer than ``context`` tokens."""
        return replace(self, card=replace(self.card, context=min(context, self.card.context)))

    @property
    def config(self) -> Any:  # noqa: ANN401 - a PreTrainedConfig
        """Its config, as transformers completed it."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Device that the weights are on."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type that it computes in."""
        return next(self.model.parameters()).dtype

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

    def weight(self, name: str, rows: slice = ALL) -> Tensor:
        """Weight ``[out_features, in_features]`` of a tensor, or rows of it: a view, or read now if it is streamed."""
        module, site = self._module(name)
        start, stop, _ = rows.indices(site.stop - site.start)
        wanted = slice(site.start + start, site.start + stop)
        return module.part(wanted) if isinstance(module, Streamed) else module.weight[wanted]

    def weight_rows(self, name: str, rows: Tensor) -> Tensor:
        """Some rows ``[drawn, in_features]`` of `weight`, of which a streamed model reads no others."""
        module, site = self._module(name)
        wanted = site.start + rows
        return module.rows(wanted) if isinstance(module, Streamed) else module.weight[wanted]

    def _module(self, name: str) -> tuple[nn.Linear | nn.Embedding, Site]:
        """The module that holds a tensor, and where in it."""
        spec = self.card.tensor(name)
        if spec.is_embedding:
            return self.embedding, Site(name, 0, spec.out_features)
        return self.linear(name), self.sites[name]

    def bias(self, name: str) -> Tensor | None:
        """Bias ``[out_features]`` of a tensor (a view), None if the model has none."""
        linear = self.linear(name)
        return linear.bias[self.sites[name].rows] if has_bias(linear) else None

    def release(self) -> None:
        """Free the weights: from here on nothing can be computed, and only the card stays."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)

    def logits(self, tokens: Tensor) -> Tensor:
        """Next-token logits ``[rows, seq_len, vocabulary]`` of token ids ``[rows, seq_len]``."""
        with torch.no_grad():
            output: Tensor = self.model(input_ids=tokens.to(self.device), use_cache=False).logits
        return output


def load_model(
    source: str, *, device: str = "cpu", dtype: DTypeName = "float32", stream: bool | None = None
) -> LoadedModel:
    """Load a model and prove that its weights are whole.

    Args:
        source: local folder or hub id.
        device: ``cpu``, ``cuda`` or ``mps``.
        dtype: type that the model computes in; a half precision only if the checkpoint is stored in it.
        stream: whether to leave the weights of linears and of the embedding in their files until they are used; None
            to do so if they take more memory than is free.

    Raises:
        InputError: not a usable model; the message says why and what to do.
    """
    torch_device = check_device(device)
    folder = fetch(source)
    check_folder(folder)
    config = read_config(folder / "config.json")
    _check_dtype(source, dtype, config)
    architecture = architecture_of(str(config.get("model_type")))
    stock = stock_classes(str(config["model_type"]))
    check_own_classes(folder, stock)
    check_class(folder, config, stock["AutoModelForCausalLM"])
    with inert_view(folder) as view:
        check_builds(folder, view)
        tokenizer = load_tokenizer(folder, view)
        own = check_own_classes(folder, stock | {"AutoTokenizer": type(tokenizer).__name__})
        sha256 = sha256_model(folder)
        wanted = getattr(torch, dtype)
        if stream is None:
            stream = device == "cpu" and not _fits_memory(folder, wanted)
        model = make_empty(folder, view, wanted) if stream else load_weights(folder, view, wanted)
    if not stream:
        check_finite(model)
    split_experts(model, model.config, architecture)
    checkpoint = Checkpoint.open(folder) if stream else None
    tied = tie_equal_head(model, model.config, architecture, checkpoint)
    anatomy = dissect(model, model.config, architecture)
    card = card_of(lasting(source), sha256, model, anatomy)
    if checkpoint is not None:
        streamed = {*(site.module for site in anatomy.sites.values()), architecture.embedding}
        fill(model, checkpoint, streamed, wanted, torch_device)
        check_finite(model)
    model = model.to(torch_device).eval().requires_grad_(requires_grad=False)
    loaded = LoadedModel(model, tokenizer, card, folder, architecture, dict(anatomy.sites), own, tied, stream)
    scale = read_embedding_scale(folder)
    if scale is not None:
        set_embedding_scale(loaded.embedding, scale)
    _check_fits_half(loaded)
    _check_vectors(loaded)
    _check_computes(loaded)
    return loaded


def loading_line(source: str | Path, *, streamed: bool) -> str:
    """What to tell while a model is loaded."""
    return f"loading {source}{', whose weights stay on the disk until they are used' if streamed else ''}"


def _fits_memory(folder: Path, dtype: torch.dtype) -> bool:
    """Whether a folder's weights take no more memory in a type than is free now."""
    count = sum(math.prod(header.shape) for header in read_headers(weight_files(folder)).values())
    return count * dtype.itemsize <= free_memory()


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
        if not all_finite(parameter):
            _refuse_infinite(name, parameter)
    for path, module in model.named_modules():
        if isinstance(module, Streamed) and not all(map(math.isfinite, module.source.extremes)):
            _refuse_infinite(f"{path}.weight", module.weight)


def _refuse_infinite(name: str, values: Tensor) -> NoReturn:
    bad = int((~torch.isfinite(values)).sum())
    msg = f"{name} holds {bad} NaN or infinite values of {values.numel()}; the checkpoint is broken"
    raise InputError(msg)


def _check_fits_half(loaded: LoadedModel) -> None:
    """Refuse matrices beyond fp16, in which MNN keeps them where they are not quantized, and scales where they are.

    Raises:
        InputError: names the matrix with the largest value.
    """
    limit = torch.finfo(torch.float16).max
    largest = {name: _largest(loaded, name) for name in loaded.sites}
    name = max(largest, key=lambda one: largest[one])
    if largest[name] > limit:
        msg = (
            f"{name} holds values up to {largest[name]:.4g}, and MNN stores matrices in fp16, which ends at "
            f"{limit:,.0f}; divide it by a power of two, and multiply the matrix or norm before or after it by the same"
        )
        raise InputError(msg)


def _largest(loaded: LoadedModel, name: str) -> float:
    """Largest magnitude of a tensor; of all of a streamed linear, which is known."""
    linear = loaded.linear(name)
    if isinstance(linear, Streamed):
        return max(map(abs, linear.source.extremes))
    low, high = loaded.weight(name).aminmax()
    return float(torch.maximum(-low, high))


def _check_vectors(loaded: LoadedModel) -> None:
    """Refuse norms and biases that `qplan check` takes for damage in the built model.

    Raises:
        InputError: names the first such vector.
    """
    for name, parameter in loaded.model.named_parameters():
        largest = float(parameter.abs().max()) if parameter.dim() == 1 else 0.0
        if largest >= LARGEST_PLAUSIBLE:
            msg = (
                f"{name} holds values up to {largest:.4g}; from {LARGEST_PLAUSIBLE:,.0f} on, norms and biases count as "
                "damaged. Download the model again, or divide them and the matrix around them by a power of two"
            )
            raise InputError(msg)


def _check_computes(loaded: LoadedModel) -> None:
    """Refuse a model that transformers builds and cannot run, or whose logits are no numbers.

    Raises:
        InputError: what transformers says, or how many logits of a few tokens are NaN or infinite.
    """
    with blamed_on(loaded.folder, "cannot be computed by transformers; does config.json suit the weights?"):
        logits = loaded.logits(torch.arange(min(_TRIED_TOKENS, loaded.card.vocabulary)).view(1, -1))
    bad = int((~torch.isfinite(logits)).sum())
    if bad:
        msg = (
            f"{loaded.folder} computes {bad:,} NaN or infinite logits of {logits.numel():,} on the first tokens of "
            f"its vocabulary in {str(logits.dtype).removeprefix('torch.')}; the checkpoint is broken, or that type too "
            "small"
        )
        raise InputError(msg)
    if bool((logits == logits[..., :1]).all()):
        msg = (
            f"{loaded.folder} computes the same logit for every token of its vocabulary; its weights were never filled "
            "in, or are zeros where nothing else gets through; save or download the model again"
        )
        raise InputError(msg)


def load_tokenizer(folder: Path, view: Path) -> Any:  # noqa: ANN401 - a PreTrainedTokenizerBase
    """Load a model's tokenizer; no code of the folder runs.

    Args:
        folder: the model's, for messages.
        view: what `inert_view` makes of it.

    Raises:
        InputError: there is none, or none that transformers can load by itself.
    """
    check_tokenizer_there(folder)
    with blamed_on(folder, "has no usable tokenizer", _AGAIN):
        tokenizer = AutoTokenizer.from_pretrained(view, local_files_only=True, trust_remote_code=False)
        empty = not tokenizer(_WORDS, add_special_tokens=False)["input_ids"]
    if empty:
        msg = f"{folder} has no usable tokenizer: {type(tokenizer).__name__} makes no tokens of {_WORDS!r}; {_AGAIN}"
        raise InputError(msg)
    return tokenizer


def card_of(source: str, sha256: str, model: Any, anatomy: Anatomy) -> ModelCard:  # noqa: ANN401
    """The card of a model, with values or without."""
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
        embedding=anatomy.embedding,
    )
