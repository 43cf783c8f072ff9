"""Whole models are measured once, on integers that several processors choose, and on nothing that no plan takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qplan.choosing.context import EVEN, PlanningContext
from qplan.choosing.halves import Halves
from qplan.choosing.repair import affordable
from qplan.choosing.request import EVALUATIONS, REPAIR_PASSES
from qplan.cost.file_bytes import estimate_fixed
from qplan.formats import FP16, INT4, INT8, QuantFormat
from qplan.jobs.stages import Stages
from qplan.model.load import LoadedModel
from qplan.rounding import Int8Activations
from qplan.rounding.moments import gather_moments
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import StoredCache
from qplan.run.calibration import CalibrationSet
from qplan.run.safetensors_file import ALL
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import Variant, joint_losses, variant_losses
from qplan.sensitivity.kept_logits import kept_logits
from qplan.settings import Memory
from tests.support.invented_table import make_table


@pytest.fixture
def table(qwen2: LoadedModel, calibration: CalibrationSet) -> SensitivityTable:
    """Only its conditions and its model count here."""
    made = make_table()
    conditions = replace(made.conditions, memory="low", samples=calibration.samples, seq_len=calibration.seq_len)
    return replace(made, model=qwen2.card, conditions=conditions)


def plan_of(loaded: LoadedModel, fmt: QuantFormat) -> dict[str, QuantFormat]:
    return {spec.name: fmt.resolve(spec.in_features) for spec in loaded.card.tensors}


def test_a_plan_is_rounded_with_jobs_before_it_is_measured(
    qwen2: LoadedModel, calibration: CalibrationSet, table: SensitivityTable, tmp_path: Path
) -> None:
    tokens = torch.from_numpy(calibration.fit.repeat(4, 0))
    moments = gather_moments(qwen2, tokens, tmp_path / "moments", inputs={})
    said: list[str] = []
    seen: list[tuple[int, int]] = []
    rounders = [Rounder(qwen2, "gptq", moments, cache=StoredCache(tmp_path / str(jobs), {})) for jobs in (1, 2)]
    plan = plan_of(qwen2, INT4) | {"model.layers.0.mlp.up_proj": FP16}
    losses = []
    for jobs, rounder in enumerate(rounders, 1):
        context = PlanningContext(
            table,
            estimate_fixed(table.model),
            rounder,
            Rounder(qwen2),
            calibration.heldout,
            said.append,
            jobs=jobs,
            visit=Stages(None, said.append, lambda done, total: seen.append((done, total))).visit,
        )
        losses.append(context.whole({"": plan})[""].kl_nats)
        count = len(said)
        assert context.whole({"": plan})[""].kl_nats == losses[-1]
        assert len(said) == count
    assert losses[0] == losses[1]
    assert f"{len(plan) - 1} tensors" in said[0]
    assert "2 at a time" in said[-1]
    assert (len(plan) - 1, len(plan) - 1) in seen
    files = {path.name: path.read_bytes() for path in (tmp_path / "1").iterdir()}
    assert len(files) == len(plan) - 1  # what plans take, and nothing else
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "2").iterdir()}


def test_losses_with_a_kept_reference_are_measured_once_and_on_half_where_that_leaves_no_doubt(
    qwen2: LoadedModel, calibration: CalibrationSet, table: SensitivityTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, uniform = plan_of(qwen2, INT8), plan_of(qwen2, INT4)
    rows = calibration.heldout
    tokens = torch.from_numpy(rows)
    same = dict(list(ours.items())[:-1]) | dict(list(uniform.items())[-1:])

    def losses(plan: dict[str, QuantFormat], memory: Memory, rows: slice) -> float:
        found = joint_losses(qwen2, tokens[rows], {"": plan}, memory, batch_size=1, engine_embedding=True)
        return found[""].kl_nats

    nearest = Rounder(qwen2)
    with kept_logits(qwen2, rows) as kept:
        fixed, halves = estimate_fixed(table.model), Halves(taken=False)
        context = PlanningContext(table, fixed, nearest, nearest, rows, print, kept=kept, halves=halves)
        clear, doubtful = context.against(ours, uniform), context.against(same, same)
        monkeypatch.setattr("qplan.choosing.context.variant_losses", None)
        assert context.against(ours, uniform) == clear
        assert context.against(same, same) == doubtful
        assert context.whole({"": same}, "normal")[""].kl_nats == pytest.approx(losses(same, "normal", ALL), rel=1e-12)
        assert context.whole({"": uniform}, "low", rows=EVEN)[""].kl_nats == losses(uniform, "low", EVEN)
        with pytest.raises(TypeError):
            context.whole({"": uniform}, "low")
    assert clear == {memory: losses(ours, memory, EVEN) / losses(uniform, memory, EVEN) for memory in table.memories}
    assert set(doubtful.values()) == {1.0}


@pytest.mark.parametrize("rows", [2, 6, 12])
def test_a_repair_takes_about_a_pass(
    qwen2: LoadedModel, calibration: CalibrationSet, table: SensitivityTable, rows: int
) -> None:
    nearest, heldout = Rounder(qwen2), calibration.heldout[:1].repeat(rows, 0)
    context = PlanningContext(table, estimate_fixed(table.model), nearest, nearest, heldout, print)
    forwards = 0.6 * affordable(context) * heldout[::2].size
    assert 0.7 * REPAIR_PASSES < forwards / (2 * calibration.tokens.size) <= REPAIR_PASSES
    long = replace(table, conditions=replace(table.conditions, samples=1000))
    assert affordable(replace(context, table=long)) == EVALUATIONS


def test_fp16_is_left_out_where_plans_are_compared(
    qwen2: LoadedModel, calibration: CalibrationSet, table: SensitivityTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Int8Activations] = []

    def losses(loaded: LoadedModel, tokens: torch.Tensor, variants: dict[str, Variant], **kwargs: Any) -> object:
        seen.extend(variant.activations for variant in variants.values())
        return variant_losses(loaded, tokens, variants, **kwargs)

    monkeypatch.setattr("qplan.choosing.context.variant_losses", losses)
    nearest = Rounder(qwen2)
    for arithmetic in ("arm-fp16", "x86"):
        under = replace(table, conditions=replace(table.conditions, arithmetic=arithmetic))
        context = PlanningContext(under, estimate_fixed(table.model), nearest, nearest, calibration.heldout, print)
        context.whole({"": plan_of(qwen2, INT8)}, exact=True)
    assert [one.arithmetic for one in seen] == ["arm", "x86"]


def test_contexts_of_both_options_share_only_what_these_leave_alone(
    qwen2: LoadedModel, calibration: CalibrationSet, table: SensitivityTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest, fixed, rows = Rounder(qwen2), estimate_fixed(table.model), calibration.heldout
    first = PlanningContext(table, fixed, nearest, nearest, rows, print)
    second = replace(first, table=replace(table, conditions=replace(table.conditions, dynamic_option=2)))
    assert second.known is first.known
    plan = {"": plan_of(qwen2, INT8)}
    for context, option in ((first, 0), (second, 2)):
        activations = Int8Activations("prefill", option)  # type: ignore[arg-type]
        expected = joint_losses(qwen2, torch.from_numpy(rows), plan, "low", activations, engine_embedding=True)
        assert context.whole(plan, exact=True)[""].kl_nats == pytest.approx(expected[""].kl_nats, rel=1e-6)
    normal = first.whole(plan, "normal", exact=True)[""].kl_nats
    monkeypatch.setattr("qplan.choosing.context.variant_losses", None)
    assert second.whole(plan, "normal", exact=True)[""].kl_nats == normal
