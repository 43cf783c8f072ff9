"""What a model's config asks of attention, positions and norms beyond the plainest decoder, read for every setting.

An exporter that drops such a setting writes another model. Some show only beyond a length: a window, or the context
that a rotation was scaled from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from qplan.errors import InputError
from qplan.model.inert import inert_view
from qplan.model.registry import architecture_of
from qplan.model.setting_specimens import ROTATION, WINDOW
from qplan.model.source import fetch

CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
"""Settings that hold a number, or nothing."""

SWITCHES = ("qk_layernorm", "use_parallel_residual", "use_qkv_bias", "use_bias", "attention_bias", "mlp_bias")
"""Settings that are on or off."""

_FROM_CONTEXT = ("longrope", "yarn", "llama3")
"""Rotations that are scaled from an original context, which their parameters name."""


CONFIG_KEYS: Mapping[str, tuple[str, ...]] = {
    WINDOW: ("sliding_window", "use_sliding_window", "layer_types"),
    **dict.fromkeys(
        (f"{ROTATION}{kind}" for kind in ("linear", "dynamic", *_FROM_CONTEXT)),
        ("rope_scaling", "rope_parameters"),
    ),
    **{key: (key,) for key in (*CAPS, *SWITCHES)},
}
"""Where every setting is read, by its name."""


@dataclass(frozen=True)
class ModelSetting:
    """One setting of a config that differs from the plainest decoder."""

    name: str
    """What it is, e.g. ``sliding window`` or ``rope linear``: a row of the compatibility table with the model type."""
    key: str
    """Where it stands in ``config.json``."""
    value: str
    """What stands there."""
    boundary: int | None = None
    """Tokens up to which a model without it may compute the same; None where it acts at every length."""


def read_model_config(view: Path) -> Any:  # noqa: ANN401 - a PreTrainedConfig
    """A model's config as transformers completes it: old keys renamed, defaults of its class filled in.

    Args:
        view: what `qplan.model.inert.inert_view` makes of the model's folder.

    Raises:
        InputError: transformers refuses it.
    """
    try:
        return AutoConfig.from_pretrained(view, local_files_only=True, trust_remote_code=False)
    except (StrictDataclassError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = " ".join(str(error).split())
        msg = f"config.json cannot be used by transformers: {told}"
        raise InputError(msg) from error


def model_config(source: str) -> Any:  # noqa: ANN401 - a PreTrainedConfig
    """The config of a model that a user named, without its weights.

    Args:
        source: local folder, hub id or URL.

    Raises:
        InputError: there is no such model, transformers refuses its config, or qplan does not know its architecture.
    """
    with inert_view(fetch(source)) as view:
        config = read_model_config(view)
    architecture_of(config.model_type)
    return config


def settings_of(config: Any) -> tuple[ModelSetting, ...]:  # noqa: ANN401 - a PreTrainedConfig
    """Every setting of a config that differs from the plainest decoder."""
    found = [*_window(config), *_rotation(config)]
    for key in CAPS:
        value = getattr(config, key, None)
        if value is not None:
            found.append(ModelSetting(key, key, f"{value:g}"))
    found += [ModelSetting(key, key, "true") for key in SWITCHES if getattr(config, key, None)]
    return tuple(found)


def _window(config: Any) -> Iterator[ModelSetting]:  # noqa: ANN401
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    slides = layers is None or "sliding_attention" in layers
    if window is not None and slides:
        yield ModelSetting(WINDOW, "sliding_window", str(window), int(window))


def _rotation(config: Any) -> Iterator[ModelSetting]:  # noqa: ANN401
    rotation = getattr(config, "rope_parameters", None)
    if not isinstance(rotation, Mapping):
        return
    kind = str(rotation.get("rope_type", "default"))
    if kind == "default" or (kind == "linear" and rotation.get("factor") == 1):
        return
    shown = ", ".join(f"{key} {rotation[key]:g}" for key in ("factor",) if isinstance(rotation.get(key), int | float))
    boundary = None
    if kind == "dynamic":
        boundary = int(config.max_position_embeddings)
    elif kind in _FROM_CONTEXT:
        boundary = int(rotation.get("original_max_position_embeddings") or config.max_position_embeddings)
    value = kind if not shown else f"{kind} ({shown})"
    yield ModelSetting(f"{ROTATION}{kind}", "rope_parameters.rope_type", value, boundary)
