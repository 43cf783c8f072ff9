"""Tells a checkpoint whose weights are integers, or floats of eight bits and fewer, from one that can be quantized."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qplan.errors import InputError
from qplan.model.headers import TensorHeader
from qplan.model.source import read_config

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of weights that are what they say, without scales beside them."""

_CONFIG_KEYS = ("quantization_config", "quantization", "compression_config", "quant_config")
"""Where tools write into ``config.json`` how they stored the weights; mlx writes ``quantization``."""

_CONFIG_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quant_model_description.json")
"""Files of their own for the same: of ModelOpt, AutoGPTQ, AutoAWQ and msModelSlim."""

_TRACES = (
    (r"qweight|qzeros|g_idx", "GPTQ or AWQ"),
    (r"q_weight|q_invperm|q_groups|q_scale_max|trellis|suh|svh", "EXL2 or EXL3"),
    (r"W_q", "HQQ"),
    (r"codebooks|codes", "AQLM"),
    (r"Qidxs|SU|SV", "QuIP#"),
    (r"\w+_blocks|blocks", "MXFP4"),
    (r"weight_packed|weight_shape", "compressed-tensors"),
    (
        r"absmax|nested_absmax|quant_map|nested_quant_map|quant_state|bitsandbytes__\w+|SCB|weight_format",
        "bitsandbytes",
    ),
    (r"scales|biases", "mlx"),
    (r"\w*scale_inv", "FP8 in blocks"),
    (r"(\w+_)?(scale|scale_2|zero_point)", "ModelOpt or compressed-tensors"),
)
"""How the last part of a name looks that belongs to scales or codes, and whose that is."""


def check_unquantized(folder: Path, config: Mapping[str, Any], headers: Mapping[str, TensorHeader]) -> None:
    """Refuse a checkpoint that is quantized already: by its configuration, its tensors' names, or their types.

    Args:
        folder: the model's.
        config: its ``config.json``.
        headers: the tensors of its weight files.

    Raises:
        InputError: says what it is, and by what that shows.
    """
    found = _by_config(config) or _by_file(folder) or _by_name(headers) or _by_type(headers)
    if found is not None:
        msg = f"{folder} is already quantized ({found}); give the original checkpoint in fp32, bf16 or fp16"
        raise InputError(msg)


def _by_config(config: Mapping[str, Any]) -> str | None:
    for key in _CONFIG_KEYS:
        value = config.get(key)
        if value:
            method = value.get("quant_method") or value.get("quant_algo") if isinstance(value, Mapping) else None
            by = str(method)[:40] if method else "mlx" if key == "quantization" else None
            return f"{'' if by is None else f'{by}, by '}{key} in config.json"
    return None


def _by_file(folder: Path) -> str | None:
    for name in _CONFIG_FILES:
        if (folder / name).is_file():
            value = read_config(folder / name).get("quantization")
            algorithm = value.get("quant_algo") if isinstance(value, Mapping) else None
            return f"{'' if algorithm is None else f'{str(algorithm)[:40]}, by '}{name}"
    return None


def _by_name(headers: Mapping[str, TensorHeader]) -> str | None:
    lasts = {name.rpartition(".")[2]: name for name in sorted(headers, reverse=True)}
    for pattern, tool in _TRACES:
        traces = sorted(name for last, name in lasts.items() if re.fullmatch(pattern, last))
        if traces:
            return f"{tool}, by the tensor {traces[0]}"
    return None


def _by_type(headers: Mapping[str, TensorHeader]) -> str | None:
    for name, header in sorted(headers.items()):
        if name.endswith(".weight") and header.dtype not in _FLOATS:
            return f"{name} is stored as {header.dtype}"
    return None
