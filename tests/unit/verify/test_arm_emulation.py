"""What torch predicts of a proof on ARM: on the tokens that are run there, once for each arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qplan.formats import INT4
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.rounding import EnginePath, Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.run.plan import Plan
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.kept_logits import kept_logits
from qplan.settings import Arithmetic, Precision
from qplan.verify.arm import ArmTrial
from qplan.verify.arm_emulation import predicted_on_arm
from tests.support.invented_run import small_run


def plan_for(loaded: LoadedModel, precision: Precision) -> Plan:
    plan = small_run().plan
    tensors = tuple(
        replace(plan.tensors[0], name=spec.name, format=INT4.resolve(spec.in_features)) for spec in loaded.card.tensors
    )
    return replace(plan, tensors=tensors, precision=precision)


@pytest.mark.parametrize("precision", ["low", "normal"])
def test_each_arithmetic_is_computed_once_on_the_tokens_that_are_run(qwen2: LoadedModel, precision: Precision) -> None:
    plan, rounder = plan_for(qwen2, precision), Rounder(qwen2)
    rows = np.random.default_rng(0).integers(0, qwen2.card.vocabulary, (3, 16))
    told: list[tuple[int, int]] = []
    with kept_logits(qwen2, rows) as reference:
        trial = ArmTrial(
            folder=Path("model"),
            formats=plan.formats,
            runtime=RuntimeConfig.of(plan),
            card=qwen2.card,
            reference=reference,
        )
        found = predicted_on_arm(
            trial, plan, rounder, ("arm-v8", "arm-dot", "arm-i8mm"), lambda *done: told.append(done)
        )

    def loss(arithmetic: Arithmetic, path: EnginePath, tokens: np.ndarray) -> float:
        activations = Int8Activations(path, 0, arithmetic)
        plans = {"": plan.formats}
        losses = joint_losses(
            qwen2, torch.from_numpy(tokens), plans, "low", activations, batch_size=1, engine_embedding=True
        )
        return losses[""].kl_nats

    # all rows in one pass each, and an eighth of the tokens one by one
    assert trial.tokens == (48, 6)
    assert loss("arm-fp16", "prefill", rows) != pytest.approx(loss("arm", "prefill", rows), rel=1e-4)
    for name in ("arm-v8", "arm-dot", "arm-i8mm"):
        known: Arithmetic = "arm" if name == "arm-v8" or precision == "normal" else "arm-fp16"
        assert found[name, precision, "prefill"] == pytest.approx(loss(known, "prefill", rows), rel=1e-4)
        assert found[name, precision, "decode"] == pytest.approx(loss(known, "decode", rows[:1, :6]), rel=1e-4)
    assert found["arm-dot", precision, "prefill"] == found["arm-i8mm", precision, "prefill"]
    assert len(found) == 3 * 2 * len(trial.precisions)
    passes = (3 + 1) * len(trial.precisions)
    assert told[-1] == (passes, passes)
    assert told == sorted(set(told))
