"""A saved run with everything that exploring reads, none of it measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qplan.artifact import sha256_file, write_json
from qplan.explore import Run, open_run
from qplan.formats import QuantFormat
from qplan.rounding import IntTensor, rtn
from qplan.run.baselines import baseline_token_losses
from qplan.run.fold import FoldRecord
from qplan.run.folder import RunFolder
from qplan.run.plan_folder import PlanFolder
from qplan.run.token_losses import TokenLosses
from tests.support.invented_run import SPECIMEN, make_run


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two layers and one built plan, ``int8``."""
    invented = make_run(2, ("fp16", "int8", "int6", "int4"), hidden=64)
    home = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    invented.table.write(home.sensitivity)
    folder = home.budget("int8")
    invented.plan.write(folder / "plan.json")
    proved = replace(invented.verification, plan_sha256=sha256_file(folder / "plan.json"))
    proved.write(folder / "verification.json")
    (folder / "model").mkdir()
    tokens = (("def", " f", "(", ")"), ("\n", "  ", "re", "turn"))
    for name, path in (
        ("plan", PlanFolder(folder).token_losses),
        ("int8", baseline_token_losses(home.baselines, "int8")),
    ):
        losses = np.arange(8, dtype=np.float32).reshape(2, 4) * np.float32(1e-4 if name == "plan" else 3e-4)
        less = losses / np.float32(3)
        TokenLosses(name, "m", "text", "12" * 32, tokens, {"low": losses, "normal": less}).write(path)
    weights(home, invented.table.model.sha256)
    return home.folder


def weights(home: RunFolder, sha256: str) -> None:
    """The weights of one tensor, folded, with the integers and moments of its input."""
    home.folded.mkdir()
    FoldRecord("tiny", "0" * 64, sha256, "low", {"original": {"int8": 2e-3}, "folded": {"int8": 1e-3}}).write(
        home.fold, {}
    )
    weight = torch.randn(64, 192, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({f"{SPECIMEN}.weight": weight}, home.folded / "model.safetensors")
    stored = rtn(weight.float(), QuantFormat.parse("int4"))
    assert isinstance(stored, IntTensor)
    assert stored.zero is not None
    made = home.rounding / "tensors-0"
    made.mkdir(parents=True)
    parts = {"codes": stored.codes, "scale": stored.scale, "zero": stored.zero}
    save_file(parts, made / f"{SPECIMEN}.int4.safetensors", {"model": sha256, "rounding": "rtn"})
    moments = home.rounding / "fit-0"
    body = {"key_of": {SPECIMEN: "in"}, "tokens": {}}
    write_json(moments / "index.json", "qplan-moments", 1, {"model": sha256, "tokens": "t"}, body)
    save_file({"moments": torch.diag(torch.arange(1.0, 193.0)) ** 2}, moments / "in.safetensors")


@pytest.fixture
def run(saved: Path) -> Run:
    """The run, opened."""
    return open_run(saved)
