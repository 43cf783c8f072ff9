"""Refuses a ``config.json`` whose values cannot be meant: of a wrong type, out of range, or at odds with each other.

transformers builds whatever a configuration says, or fails somewhere within. Here the key is named, before anything is
built. Keys that are absent are left alone: transformers knows what an architecture takes then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qplan.errors import InputError

_MOST = 2**31 - 1
"""Sizes and token ids are 32-bit numbers in every engine."""
_SHOWN = 60
"""Characters of a value in a message."""

_DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class _Kind:
    """What a value may be."""

    what: str
    fits: Callable[[Any], bool]


def _is_int(value: Any, least: int) -> bool:  # noqa: ANN401 - any JSON value
    return type(value) is int and least <= value <= _MOST


def _is_number(value: Any, fits: Callable[[float], bool]) -> bool:  # noqa: ANN401
    return type(value) in (int, float) and abs(value) < 1e30 and math.isfinite(value) and fits(value)  # noqa: PLR2004


def _is_list(value: Any, of: type) -> bool:  # noqa: ANN401
    return isinstance(value, list) and all(type(one) is of for one in value)


_SIZE = _Kind("a whole number of at least 1", lambda value: _is_int(value, 1))
_SIZE_OR_NULL = _Kind("a whole number of at least 1, or null", lambda value: value is None or _is_int(value, 1))
_COUNT_OR_NULL = _Kind("a whole number of at least 0, or null", lambda value: value is None or _is_int(value, 0))
_BOOL = _Kind("true or false", lambda value: isinstance(value, bool))
_SMALL = _Kind("a number from 0 to 1", lambda value: _is_number(value, lambda x: 0 <= x <= 1))
_POSITIVE = _Kind("a number above 0", lambda value: _is_number(value, lambda x: x > 0))
_TEXT_OR_NULL = _Kind("a text, or null", lambda value: value is None or (isinstance(value, str) and value != ""))
_TEXT = _Kind("a text", lambda value: isinstance(value, str) and value != "")
_TEXTS_OR_NULL = _Kind("a list of texts, or null", lambda value: value is None or _is_list(value, str))
_OBJECT_OR_NULL = _Kind("an object, or null", lambda value: value is None or isinstance(value, dict))
_ID_OR_NULL = _Kind("a token id, or null", lambda value: value is None or _is_int(value, -1))
_IDS_OR_NULL = _Kind(
    "a token id, a list of them, or null",
    lambda value: value is None or _is_int(value, -1) or (_is_list(value, int) and all(_is_int(v, -1) for v in value)),
)
_DTYPE_OR_NULL = _Kind(
    f"one of {', '.join(_DTYPES)}",
    lambda value: value is None or (isinstance(value, str) and value.removeprefix("torch.") in _DTYPES),
)

_KINDS: dict[str, _Kind] = {
    "model_type": _TEXT,
    "architectures": _TEXTS_OR_NULL,
    **dict.fromkeys(("dtype", "torch_dtype"), _DTYPE_OR_NULL),
    **dict.fromkeys(
        (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
        ),
        _SIZE,
    ),
    **dict.fromkeys(("num_key_value_heads", "head_dim"), _SIZE_OR_NULL),
    **dict.fromkeys(("sliding_window", "max_window_layers"), _COUNT_OR_NULL),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "partial_rotary_factor"), _SMALL),
    "rope_theta": _POSITIVE,
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _OBJECT_OR_NULL),
    "hidden_act": _TEXT,
    "hidden_activation": _TEXT_OR_NULL,
    **dict.fromkeys(("tie_word_embeddings", "use_sliding_window", "use_parallel_residual"), _BOOL),
    "layer_types": _TEXTS_OR_NULL,
    **dict.fromkeys(("bos_token_id", "pad_token_id"), _ID_OR_NULL),
    "eos_token_id": _IDS_OR_NULL,
}
"""What each key may hold where it is present."""

_ROPE_KINDS: dict[str, _Kind] = {
    "rope_theta": _POSITIVE,
    "factor": _Kind("a number of at least 1", lambda value: _is_number(value, lambda x: x >= 1)),
    "rope_type": _TEXT,
    "type": _TEXT,
    "original_max_position_embeddings": _SIZE,
}
"""The same for the keys of ``rope_parameters``, which older files call ``rope_scaling``."""


def check_values(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse values of a wrong type or out of range.

    Args:
        path: the ``config.json``, for messages.
        config: what it holds.

    Raises:
        InputError: names the first such key, its value and what fits.
    """
    _check(path, config, _KINDS)
    for key in ("rope_parameters", "rope_scaling"):
        _check(path, config.get(key) or {}, _ROPE_KINDS, f"{key}.")


def check_generation(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse tokens that begin or end an answer and are none.

    Args:
        path: the ``generation_config.json``, for messages.
        config: what it holds.

    Raises:
        InputError: names the first such key, its value and what fits.
    """
    _check(path, config, {key: _KINDS[key] for key in ("bos_token_id", "pad_token_id", "eos_token_id")})


def check_end(path: Path, config: Mapping[str, Any], vocabulary: int | None) -> None:
    """Refuse tokens that end an answer of which none can ever come.

    Args:
        path: the ``config.json`` or ``generation_config.json``, for messages.
        config: what it holds, of the right types.
        vocabulary: tokens that the model has; None if its config does not say.

    Raises:
        InputError: gives the tokens and their limit.
    """
    ends = config.get("eos_token_id")
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if vocabulary is not None and ids and all(token >= vocabulary for token in ids):
        raise refused(path, "eos_token_id", ends, f"a token below vocab_size, {vocabulary}: answers would never end")


def check_agreement(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse values that are at odds with each other.

    Args:
        path: the ``config.json``, for messages.
        config: what it holds, of the right types.

    Raises:
        InputError: names the first such key, its value and what fits.
    """
    heads, key_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if heads is not None and key_heads is not None and heads % key_heads:
        fits = ", ".join(str(number) for number in range(1, min(heads, 128) + 1) if heads % number == 0)
        raise refused(path, "num_key_value_heads", key_heads, f"a divisor of num_attention_heads, {heads}: {fits}")
    layers, types = config.get("num_hidden_layers"), config.get("layer_types")
    if layers is not None and types is not None and len(types) != layers:
        raise refused(path, "layer_types", types, f"{layers} texts, as num_hidden_layers says, not {len(types)}")
    vocabulary, pad = config.get("vocab_size"), config.get("pad_token_id")
    if vocabulary is not None and pad is not None and pad >= vocabulary:
        raise refused(path, "pad_token_id", pad, f"a token id below vocab_size, {vocabulary}, or null")


def refused(path: Path, key: str, value: object, wanted: str) -> InputError:
    """The error for a value of a configuration.

    Args:
        path: the file.
        key: where the value stands.
        value: what stands there.
        wanted: what would fit.
    """
    return InputError(f"{path}: {key} is {shown(value)}; expected {wanted}")


def shown(value: object) -> str:
    """A JSON value for a message, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check(path: Path, values: Mapping[str, Any], kinds: Mapping[str, _Kind], within: str = "") -> None:
    for key, kind in kinds.items():
        if key in values and not kind.fits(values[key]):
            raise refused(path, f"{within}{key}", values[key], kind.what)
