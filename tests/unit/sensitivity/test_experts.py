"""Experts that few or no calibration tokens reach, and routers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qplan.calibration import Text, tokenize
from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InputError
from qplan.formats import FP16, INT8, parse_formats
from qplan.model.load import LoadedModel
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.rounding.moments import gather_moments
from qplan.rounding.rounder import Rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.table import SensitivityTable
from qplan.sensitivity.menu import resolve_menu
from qplan.tensors import Role
from tests.support.tiny_models import VOCABULARY, words
from tests.support.whole_tables import estimated_table, measured_table

EACH = "{layer}.mlp.experts.{expert}.{kind}"


@pytest.fixture(scope="module")
def mixed(tiny_models: dict[str, LoadedModel]) -> LoadedModel:
    return tiny_models["qwen3_moe"]


@pytest.fixture(scope="module")
def one_token(mixed: LoadedModel) -> CalibrationSet:
    """Two tokens: they reach some experts of four, two each."""
    text = Text((words(60, seed=2),), "words", None)
    return tokenize(text, mixed.tokenizer, samples=1, seq_len=2, seed=0, context=128, vocabulary=VOCABULARY)


@pytest.fixture(scope="module", params=["measured", "gradient"])
def table(request: pytest.FixtureRequest, mixed: LoadedModel, one_token: CalibrationSet) -> SensitivityTable:
    analyze = {"measured": measured_table, "gradient": estimated_table}[request.param]
    return analyze(mixed, one_token, parse_formats("int8,int4"))


def test_moments_are_an_experts_own_and_few_tokens_are_said(mixed: LoadedModel, tmp_path: Path) -> None:
    tokens = torch.randint(VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(0))
    moments = gather_moments(mixed, tokens, tmp_path, inputs={})
    counts = {spec.expert: moments.tokens[spec.name] for spec in mixed.card.tensors if spec.expert is not None}
    assert sum(counts.values()) == 2 * tokens.numel()
    rounder = Rounder(mixed, "gptq", moments)
    assert set(rounder.starved) >= {s.name for s in mixed.card.tensors if s.expert is not None}
    assert "rounded to nearest" in str(rounder.notes[0])


def test_an_expert_that_no_token_reaches_is_named_and_follows_the_others(
    mixed: LoadedModel, table: SensitivityTable
) -> None:
    losses = table.losses()
    downs = [spec for spec in mixed.card.tensors if spec.expert is not None and spec.kind == "down_proj"]
    silent = [spec.expert or 0 for spec in downs if not losses[spec.name]["int4-b0"].kl_nats]
    assert silent
    assert any(f"1.{min(silent)}" in note and "none of the tokens" in note for note in map(str, table.notes))
    plan = make_plan(table, Budget.parse("int8"), estimate_fixed(mixed.card))
    for kind in ("gate_up_proj", "down_proj"):
        assert len({t.format for t in plan.tensors if t.kind == kind and ".experts." in t.name}) == 1
    with pytest.raises(InputError, match="no calibration token reached"):
        make_plan(table, Budget.parse("int8"), estimate_fixed(mixed.card), rules=Rules(group_patterns=(EACH,)))


def test_routers_stay_in_halves_unless_they_are_pinned(mixed: LoadedModel, table: SensitivityTable) -> None:
    router = next(spec.name for spec in mixed.card.tensors if spec.role is Role.ROUTER)
    menu, _ = resolve_menu(mixed.card, (INT8,))
    assert menu[router] == (FP16, INT8)
    assert all(FP16 not in formats for name, formats in menu.items() if name != router)
    fixed = estimate_fixed(mixed.card)
    plan = make_plan(table, Budget.parse("int8"), fixed)
    assert plan.formats[router] == FP16
    assert "rule: routers are fp16 (1 of them); --pin '*.mlp.gate=int8' overrides it" in map(str, plan.notes)
    assert Rules.of(plan) == Rules()
    pinned = make_plan(table, Budget.parse("int8"), fixed, rules=Rules(pins={"*.mlp.gate": INT8}))
    assert pinned.formats[router] == INT8
    assert any("1 of 1 routers are rounded" in str(note) for note in pinned.notes)
