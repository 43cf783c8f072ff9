"""Moments of a run are read when a tensor is rounded with them, and never believed unread."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from qplan.errors import DamagedArtifactError
from qplan.formats import INT4, INT8
from qplan.model.load import LoadedModel
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.damage import DamagedCacheWarning
from qplan.run.folder import RunFolder
from qplan.run.safetensors_file import SafetensorsFile

TENSOR = "model.layers.0.self_attn.o_proj"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 4
    path.write_bytes(data)


def test_only_moments_of_tensors_still_to_be_rounded_are_proved(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qplan.rounding.rounder.FEW_TOKENS", 1)
    run, menu = RunFolder(tmp_path), {TENSOR: [INT4.resolve(qwen2.card.tensor(TENSOR).in_features)]}
    first = run_rounder(run, qwen2, calibration, "gptq", menu=menu)
    assert first.moments is not None
    path = first.moments.folder / f"{TENSOR}.safetensors"
    whole = path.read_bytes()
    damage(path)
    with pytest.warns(DamagedCacheWarning, match=r"o_proj.*does not match its sha256"):
        rounder = run_rounder(run, qwen2, calibration, "gptq", menu=menu)
    assert path.read_bytes() == whole
    stored = rounder.store(TENSOR, menu[TENSOR][0])
    damage(path)
    seen: list[Path] = []
    check = SafetensorsFile.check

    def noted(file: SafetensorsFile) -> None:
        seen.append(file.path)
        check(file)

    monkeypatch.setattr(SafetensorsFile, "check", noted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rounder = run_rounder(run, qwen2, calibration, "gptq", menu=menu)
        again = rounder.store(TENSOR, menu[TENSOR][0])
    assert torch.equal(again.dequantize(), stored.dequantize())
    assert path not in seen
    with pytest.raises(DamagedArtifactError, match="does not match its sha256"):
        rounder.store(TENSOR, INT8.resolve(32))
