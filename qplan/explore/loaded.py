"""Everything that needs the model itself. Imports torch and transformers; only calls that say so import it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qplan.folding.analyzed import load_analyzed
from qplan.formats import QuantFormat
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.rounding import IntTensor
from qplan.rounding.methods import round_with
from qplan.roundings import needs_tokens
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.verify.layers import error_by_layer


@lru_cache(maxsize=1)
def _model(folder: Path, sha256: str) -> LoadedModel:  # noqa: ARG001 - the key: a run that was analyzed again
    home = RunFolder(folder)
    return load_analyzed(home, SensitivityTable.read(home.sensitivity).model, lambda _: None).loaded


def load(home: RunFolder, table: SensitivityTable) -> LoadedModel:
    """The model that was analyzed, in FP32; the last one is kept.

    Raises:
        StaleArtifactError: the model has changed since.
    """
    return _model(home.folder.resolve(), table.model.sha256)


def loaded_weight(home: RunFolder, table: SensitivityTable, tensor: str) -> NDArray[np.float32]:
    """Weights ``[out_features, in_features]``."""
    weight: NDArray[np.float32] = load(home, table).weight(tensor).detach().float().cpu().numpy()
    return weight


def rounded_grid(
    home: RunFolder, table: SensitivityTable, tensor: str, fmt: QuantFormat
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Codes, scales and zero points by rounding without data; to nearest if the run's rounding needed data."""
    weight = load(home, table).weight(tensor).detach()
    rounding = table.conditions.rounding
    stored = round_with("rtn" if needs_tokens(rounding) else rounding, weight, fmt)
    if not isinstance(stored, IntTensor):
        msg = f"{fmt} has no grid"
        raise TypeError(msg)
    zero = None if stored.zero is None else stored.zero.cpu().numpy()
    return stored.codes.cpu().numpy(), stored.scale.cpu().numpy(), zero


def inputs_of(home: RunFolder, table: SensitivityTable, tensor: str, tokens: int) -> NDArray[np.float32]:
    """What a tensor multiplies: activations ``[tokens, in_features]`` in FP32 on the first calibration tokens."""
    loaded, calibration = load(home, table), CalibrationSet.read(home.calibration)
    rows = calibration.tokens[: max(1, -(-tokens // calibration.seq_len))]
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].detach().float().reshape(-1, args[0].shape[-1]).cpu())

    hook = loaded.linear(tensor).register_forward_pre_hook(keep)
    try:
        for row in rows:
            loaded.logits(torch.from_numpy(row[None]))
    finally:
        hook.remove()
    found: NDArray[np.float32] = torch.cat(seen)[:tokens].numpy()
    return found


def errors_by_layer(
    home: RunFolder, table: SensitivityTable, model: Path, plan: Plan, tokens: int
) -> tuple[float, ...]:
    """KL of what the head reads after 0, 1, ... all layers on the first held-out tokens; see `error_by_layer`."""
    row = CalibrationSet.read(home.calibration).heldout[0]
    return error_by_layer(model, load(home, table), RuntimeConfig.of(plan), row[:tokens].tolist())
