"""What transformers makes of a folder: its own classes, a model that it can build, and weights that are whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto import configuration_auto
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from qplan.errors import InputError
from qplan.model.config_values import refused
from qplan.model.headers import read_headers
from qplan.model.source import read_config, weight_files

_MOST_QUOTED = 1000
"""Characters of a library's message that are passed on."""


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


def stock_classes(model_type: str) -> dict[str, str]:
    """Names of transformers' own classes for a model type, by what they are used for."""
    return {
        "AutoConfig": str(vars(configuration_auto)["CONFIG_MAPPING_NAMES"][model_type]),
        "AutoModelForCausalLM": str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]),
    }


def check_class(folder: Path, config: Mapping[str, Any], stock: str) -> None:
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


@contextmanager
def blamed_on(folder: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a library raises about a folder into an error about the folder.

    transformers and tokenizers check little of what they read: what is wrong with a folder may come as any exception,
    from deep within. Within the block must be nothing but their work on that folder.

    Args:
        folder: the folder.
        what: what is wrong with it.
        remedy: what to do about it, where the library's own words leave that open.

    Raises:
        InputError: in place of any other exception.
    """
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = str(error).strip() or "no more is said"
        msg = f"{folder} {what}: {type(error).__name__}: {text[:_MOST_QUOTED]}{remedy and f'; {remedy}'}"
        raise InputError(msg) from error


def check_builds(folder: Path, view: Path) -> None:
    """Refuse a configuration that transformers can build no model from, before any weights are read.

    Raises:
        InputError: an unknown activation, say, or widths that don't go together.
    """
    with blamed_on(folder, "has a config.json that transformers cannot use"):
        config = AutoConfig.from_pretrained(view, local_files_only=True, trust_remote_code=False)
    key = "hidden_act" if getattr(config, "hidden_activation", None) is None else "hidden_activation"
    activation = getattr(config, key, None)
    if activation is not None and activation not in ACT2FN:
        near = ", ".join(get_close_matches(str(activation), list(ACT2FN), cutoff=0.4)) or ", ".join(sorted(ACT2FN))
        raise refused(folder / "config.json", key, activation, f"an activation of transformers': {near}")
    _check_rotation(folder, config)
    with blamed_on(folder, "has a config.json that transformers cannot build a model from"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    _check_shapes(folder, view, model)


def _check_shapes(folder: Path, view: Path, model: torch.nn.Module) -> None:
    """Refuse weights of other shapes than a configuration makes, which names no size that is wrong.

    What it does not name are transformers' defaults: of a model of 7 billion, with the memory that this takes.

    Raises:
        InputError: names the first such tensor.
    """
    headers = read_headers(weight_files(view))
    for name, parameter in model.named_parameters():
        header = headers.get(name)
        if header is not None and tuple(header.shape) != tuple(parameter.shape):
            msg = (
                f"{folder / 'config.json'} makes {name} {list(parameter.shape)}, and the weight files hold "
                f"{list(header.shape)}; sizes that it does not name are transformers' defaults. Is it whole, and of "
                "the same model?"
            )
            raise InputError(msg)


def _check_rotation(folder: Path, config: Any) -> None:  # noqa: ANN401 - a PreTrainedConfig
    rotation = getattr(config, "rope_parameters", None)
    kind = rotation.get("rope_type", "default") if isinstance(rotation, Mapping) else "default"
    known = sorted({"default", *ROPE_INIT_FUNCTIONS})
    if kind not in known:
        path = folder / "config.json"
        key = "rope_scaling" if read_config(path).get("rope_scaling") else "rope_parameters"
        raise refused(path, f"{key}.rope_type", kind, f"a rotation of transformers': {', '.join(known)}")


def load_weights(folder: Path, view: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - a PreTrainedModel
    """Load the weights of a folder into transformers' own class.

    Args:
        folder: the model's, for messages.
        view: what `inert_view` makes of it.
        dtype: type that the model computes in.

    Raises:
        InputError: weights that are absent, of another shape, or left over.
    """
    with blamed_on(folder, "cannot be loaded as a causal language model"), without_bars():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            view,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, info = loaded
    unexpected = sorted(str(key) for key in info.get("unexpected_keys") or ())
    more = f" and {len(unexpected) - 1:,} more" if unexpected[1:] else ""
    # Hugging Face fills what a checkpoint lacks with random numbers and a warning
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info.get(what):
            names = ", ".join(str(key) for key in sorted(info[what], key=str)[:3])
            remedy = "download the model again"
            if what == "missing_keys" and unexpected:
                remedy = (
                    f"they hold {unexpected[0]}{more} instead: save the model again, unwrapped (of DataParallel, "
                    f"DeepSpeed or torch.compile), by save_pretrained of a {type(model).__name__}"
                )
            msg = f"{folder}: {what.replace('_', ' ')} in the weight files: {names}; {remedy}"
            raise InputError(msg)
    refuse_unexpected(folder, unexpected, type(model).__name__)
    return model


def refuse_unexpected(folder: Path, unexpected: Sequence[str], kind: str) -> None:
    """Refuse weight files with more than a class has use for: scales of quantized weights, a classifier's head.

    Raises:
        InputError: there is any; ``kind`` is the class.
    """
    if unexpected:
        more = f" and {len(unexpected) - 1:,} more" if unexpected[1:] else ""
        msg = (
            f"{folder}: the weight files hold {unexpected[0]}{more}, which a {kind} has no use for: "
            "they are another class's or quantized; give a checkpoint that save_pretrained wrote from that class"
        )
        raise InputError(msg)
