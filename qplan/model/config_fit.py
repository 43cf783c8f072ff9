"""Holds a ``config.json`` against the weight files that lie beside it: layers, widths, heads, vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qplan.errors import InputError
from qplan.model.headers import TensorHeader
from qplan.model.registry import Architecture

_MATRIX = 2
_ORDER = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
"""Which key is named if several do not fit: each may be why the later ones seem wrong."""
_READ_HIDDEN = frozenset(
    {"embedding", "q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "fc1"}
)
_WRITE_HIDDEN = frozenset({"o_proj", "dense", "down_proj", "fc2"})


@dataclass(frozen=True)
class _Part:
    """How many rows or columns of a matrix a key of the configuration stands for."""

    key: str
    size: int
    actual: int
    per: int = 1
    """Rows or columns to one of the key."""


def check_fits(
    path: Path, config: Mapping[str, Any], headers: Mapping[str, TensorHeader], architecture: Architecture
) -> None:
    """Refuse a configuration that is another model's than the weight files'.

    Args:
        path: the ``config.json``, for messages.
        config: what it holds, of the right types.
        headers: the tensors of the weight files.
        architecture: where linears are.

    Raises:
        InputError: names the key, its value, the tensor that disagrees, and the value that fits.
    """
    _check_layers(path, config, headers, architecture)
    matrices = {
        name.removesuffix(".weight"): header
        for name, header in headers.items()
        if len(header.shape) == _MATRIX and name.endswith(".weight")
    }
    wrong = [
        (_ORDER.index(part.key), part, f"{module}.weight")
        for module, header in matrices.items()
        for part in (*_parts(module, header, config, architecture), *_head_parts(module, header, config, headers))
        if part.size * part.per != part.actual
    ]
    if wrong:
        _, part, name = min(wrong, key=lambda one: one[0])
        fits = f": {part.actual // part.per} would fit" if part.actual > 0 and part.actual % part.per == 0 else ""
        msg = (
            f"{path}: {part.key} is {part.size}, and {name} has the shape {list(headers[name].shape)}{fits}; "
            "are config.json and the weight files of one model?"
        )
        raise InputError(msg)


def _check_layers(
    path: Path, config: Mapping[str, Any], headers: Mapping[str, TensorHeader], architecture: Architecture
) -> None:
    base, _, layers = architecture.layers.rpartition(".")
    pattern = re.compile(rf"(?:{re.escape(base)}\.)?{re.escape(layers)}\.(\d{{1,9}})\.")
    there = {int(found[1]) for name in headers if (found := pattern.match(name))}
    wanted = config.get("num_hidden_layers")
    if wanted is None or not there or there == set(range(min(wanted, len(there) + 1))):
        return
    gaps = sorted(set(range(len(there))) - there)
    held = f"lack layer {gaps[0]}" if gaps else f"hold {len(there)}"
    msg = (
        f"{path}: num_hidden_layers is {wanted}, and the weight files {held}; "
        "are they of one model, and all of its files here?"
    )
    raise InputError(msg)


def _parts(name: str, header: TensorHeader, config: Mapping[str, Any], architecture: Architecture) -> Iterator[_Part]:
    """What a configuration says outright about the shape of a matrix; absent keys have defaults by architecture."""
    rows, columns = header.shape
    kind = name.rpartition(".")[2]
    hidden, inner = config.get("hidden_size"), config.get("intermediate_size")
    if name in (architecture.embedding, architecture.head, architecture.embedding.partition(".")[2]):
        if config.get("vocab_size") is not None:
            yield _Part("vocab_size", config["vocab_size"], rows)
        kind = "embedding"
    if hidden is not None and kind in _READ_HIDDEN | _WRITE_HIDDEN:
        yield _Part("hidden_size", hidden, columns if kind in _READ_HIDDEN else rows)
    # experts have widths of their own
    if inner is not None and ".experts." not in name:
        if kind in ("gate_proj", "up_proj", "fc1"):
            yield _Part("intermediate_size", inner, rows)
        elif kind in ("down_proj", "fc2"):
            yield _Part("intermediate_size", inner, columns)
        elif kind == "gate_up_proj":
            yield _Part("intermediate_size", inner, rows, 2)


def _head_parts(
    name: str, header: TensorHeader, config: Mapping[str, Any], headers: Mapping[str, TensorHeader]
) -> Iterator[_Part]:
    """The same for heads. Without a ``head_dim``, query rows by heads tell how wide one is."""
    rows, columns = header.shape
    block, _, kind = name.rpartition(".")
    heads, key_heads, size = (config.get(key) for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    if heads is None:
        return
    if size is None:
        query = headers.get(f"{block}.q_proj.weight")
        wide = query.shape[0] if query is not None and query.shape else config.get("hidden_size")
        size = max((wide or 0) // heads, 1)
    if kind in ("q_proj", "o_proj", "dense"):
        yield _Part("num_attention_heads", heads, rows if kind == "q_proj" else columns, size)
    elif key_heads is not None and kind in ("k_proj", "v_proj"):
        yield _Part("num_key_value_heads", key_heads, rows, size)
    elif key_heads is not None and kind == "qkv_proj":
        yield _Part("num_key_value_heads", key_heads, rows - heads * size, 2 * size)
