"""The proof on ARM: under which settings, and on which tokens, a built plan is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from qplan.cost.arm import proof_precisions
from qplan.mnn.host import THIS_PYTHON
from qplan.mnn.runtime import RuntimeConfig
from qplan.run.plan import Plan
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.settings import Precision
from qplan.verify import arm
from qplan.verify.arm import ArmTrial, prove_on_arm
from tests.support.invented_run import small_run

RAN: list[tuple[RuntimeConfig, str, int]] = []
"""Settings, path and tokens of each pass over a row."""


class Engine:
    """Says what it was asked to run, instead of running a model."""

    def __init__(self, folder: Path, runtime: RuntimeConfig, **_: Any) -> None:
        self.load(folder, runtime)

    def load(self, _: Path, runtime: RuntimeConfig) -> None:
        self.runtime = runtime

    def logits(self, ids: list[int], path: str = "prefill") -> np.ndarray[Any, Any]:
        RAN.append((self.runtime, path, len(ids)))
        return np.zeros((len(ids), 4), np.float32)

    def logits_stepwise(self, ids: list[int]) -> np.ndarray[Any, Any]:
        return self.logits(ids, "decode")

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    RAN.clear()
    monkeypatch.setattr(arm, "EngineSession", Engine)


def trial_of(plan: Plan, rows: int = 2, seq_len: int = 16) -> ArmTrial:
    tokens = np.zeros((rows, seq_len), np.int64)
    return ArmTrial(
        folder=Path("model"),
        formats=plan.formats,
        runtime=RuntimeConfig.of(plan),
        card=small_run().table.model,
        reference=KeptLogits(tokens, np.zeros((*tokens.shape, 4), np.float32)),
    )


@pytest.mark.parametrize(("ships", "proved"), [("low", ("low", "high")), ("normal", ("normal",)), ("high", ("high",))])
def test_a_plan_is_proved_under_its_own_settings_and_in_fp32(ships: Precision, proved: tuple[Precision, ...]) -> None:
    plan = replace(small_run().plan, precision=ships, dynamic_option=2)
    told: list[tuple[int, int]] = []
    trial = trial_of(plan)
    proof = prove_on_arm(trial, {"arm-dot": THIS_PYTHON}, jobs=1, progress=lambda *done: told.append(done))
    assert proof_precisions(ships) == trial.precisions == proved
    assert [(run.precision, run.path) for run in proof.runs] == [
        (precision, path) for precision in proved for path in ("prefill", "decode")
    ]
    assert told == [(done, 2 * len(proved)) for done in range(1, 2 * len(proved) + 1)]
    # first on this machine, as it ships
    assert list(dict.fromkeys(runtime for runtime, *_ in RAN)) == [
        RuntimeConfig("low", precision, dynamic_option=2) for precision in proved
    ]
    assert RAN[:3] == [(RuntimeConfig.of(plan), "prefill", 16)] * 2 + [(RuntimeConfig.of(plan), "decode", 4)]
