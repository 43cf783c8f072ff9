"""Checkpoints that are quantized already are known: by their tensors, by their configuration, by files of tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qplan.errors import InputError
from qplan.model.door import check_folder

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Qwen2."""
    return Path(shutil.copytree(model_folders["qwen2"], tmp_path / "model"))


def change(folder: Path, name: str = "config.json", /, **keys: Any) -> None:
    path = folder / name
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(value | keys), encoding="utf-8")


QUANTIZED: dict[str, tuple[Callable[[Tensor], dict[str, Tensor]], str]] = {
    "gptq": (lambda w: {".qweight": w.int(), ".scales": w, ".g_idx": w.int()}, "GPTQ or AWQ, by the tensor"),
    "mlx": (lambda w: {".weight": w.int(), ".scales": w, ".biases": w}, "mlx, by the tensor"),
    "bitsandbytes": (lambda w: {".weight": w.to(torch.uint8), ".weight.absmax": w}, "bitsandbytes, by the tensor"),
    "llm.int8": (lambda w: {".weight": w.to(torch.int8), ".SCB": w}, "bitsandbytes, by the tensor"),
    "packed": (lambda w: {".weight_packed": w.int(), ".weight_scale": w}, "compressed-tensors, by the tensor"),
    "modelopt": (
        lambda w: {".weight": w.to(torch.float8_e4m3fn), ".weight_scale": w, ".input_scale": w},
        "ModelOpt or compressed-tensors, by the tensor",
    ),
    "fp8 in blocks": (lambda w: {".weight": w.to(torch.float8_e4m3fn), ".weight_scale_inv": w}, "FP8 in blocks"),
    "fp8": (lambda w: {".weight": w.to(torch.float8_e4m3fn)}, r"q_proj\.weight is stored as F8_E4M3"),
    "int8": (lambda w: {".weight": w.to(torch.int8)}, r"q_proj\.weight is stored as I8"),
    "awq": (lambda w: {".qweight": w.int(), ".scales": w, ".qzeros": w.int()}, "GPTQ or AWQ, by the tensor"),
    "hqq": (lambda w: {".W_q": w.to(torch.uint8), ".scale": w, ".zero": w}, "HQQ, by the tensor"),
    "exl2": (lambda w: {".q_weight": w.int(), ".q_scale": w.int(), ".q_groups": w.int()}, "EXL2 or EXL3, by the"),
    "exl3": (lambda w: {".trellis": w.int(), ".suh": w, ".svh": w}, "EXL2 or EXL3, by the tensor"),
    "aqlm": (lambda w: {".codes": w.int(), ".codebooks": w, ".scales": w}, "AQLM, by the tensor"),
    "quip": (lambda w: {".Qidxs": w.int(), ".SU": w, ".SV": w}, "QuIP#, by the tensor"),
    "mxfp4": (lambda w: {"_blocks": w.to(torch.uint8), "_scales": w.to(torch.uint8)}, "MXFP4, by the tensor"),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_are_known_without_a_word_in_the_config(folder: Path, kind: str) -> None:
    stored, message = QUANTIZED[kind]
    tensors: dict[str, Tensor] = {}
    for key, one in load_file(folder / WEIGHTS).items():
        base = key.removesuffix(".weight")
        tensors |= {base + end: part.clone() for end, part in stored(one).items()} if "q_proj.w" in key else {key: one}
    save_file({key: one.contiguous() for key, one in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"is already quantized \(.*{message}.*; give the original checkpoint"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "mlx, by quantization in config.json"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq, by quantization_config in config.json"),
        ({"quantization_config": "yes"}, "quantization_config in config.json"),
        ({"compression_config": {"format": "x"}}, "compression_config in config.json"),
        *(
            ({"quantization_config": {"quant_method": method}}, f"{method}, by quantization_config in config.json")
            for method in ("gptq", "bitsandbytes", "compressed-tensors", "torchao", "fp8")
        ),
        (
            {"quantization": {"bits": 4}, "quantization_config": {"group_size": 64, "bits": 4}},
            "quantization_config in config.json",
        ),
    ],
)
def test_a_config_that_names_a_quantization_is_believed(folder: Path, keys: dict[str, Any], message: str) -> None:
    change(folder, **keys)
    with pytest.raises(InputError, match=rf"already quantized \({message}\)"):
        check_folder(folder)
    change(folder, **dict.fromkeys(keys))
    check_folder(folder)


def test_modelopts_own_file_is_believed(folder: Path) -> None:
    change(folder, "hf_quant_config.json", quantization={"quant_algo": "NVFP4"})
    with pytest.raises(InputError, match=r"already quantized \(NVFP4, by hf_quant_config\.json\)"):
        check_folder(folder)
