from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from qplan.report import sections
from qplan.report.notation import MISSING, TIMES, quotient, ratio
from qplan.report.page import render_html, render_markdown
from qplan.report.summary import Status, baseline, best_rival, contenders, verdict
from qplan.run.plan import Plan, Rival
from qplan.uniform import UniformExport
from tests.support.invented_run import Run, small_run, verification_of


@pytest.fixture(name="small")
def _small() -> Run:
    return small_run()


def test_models_run_from_the_plan_to_the_narrowest(small: Run) -> None:
    models = contenders(small.plan, small.verification)
    assert [m.label for m in models] == ["Plan", "FP16", "INT8", "INT4"]
    assert all(m.measured_nats is not None and m.predicted_nats is not None for m in models)


@pytest.mark.parametrize(("budget", "rival"), [("int4", "int4"), (" INT8", "int8"), ("7.4MB", "int8")])
def test_the_rival_is_named_or_nearest(small: Run, budget: str, rival: str) -> None:
    plan = replace(small.plan, budget=budget)
    found = baseline(plan, contenders(plan, small.verification))
    assert found is not None
    assert found.name == rival


def test_verdict_of_a_verified_plan(small: Run) -> None:
    found = verdict(small.plan, small.verification)
    assert found.status is Status.PASS
    assert "on the engine" in found.sentence
    assert f"{TIMES} the loss of uniform INT8 at 0.96{TIMES} its bytes" in found.sentence
    labels = [tile.label for tile in found.tiles]
    assert labels == ["Size", "RAM to load", "Decode", "Prefill", "KL, memory low", "Same top token"]


def with_rivals(run: Run, names: Sequence[str]) -> Plan:
    rivals = tuple(Rival(name, 1_000_000, 0.1, UniformExport.parse(name).command) for name in names)
    return replace(run.plan, rivals=rivals)


def test_the_headline_compares_with_the_best_uniform_model_that_was_built(small: Run) -> None:
    int8 = small.verification.model("int8")
    assert int8 is not None
    runs = tuple(replace(r, accuracy=replace(r.accuracy, kl_nats=r.accuracy.kl_nats / 2)) for r in int8.runs)
    better = replace(int8, name="int5-b32-hqq", runs=runs)
    built = replace(small.verification, models=(*small.verification.models, better))
    plan = with_rivals(small, ["int8", "int5-b32-hqq", "int6"])
    models = contenders(plan, built)
    best, own = best_rival(plan, models), models[0].measured_nats
    assert best is not None
    assert (best.name, best.measured_nats) == ("int5-b32-hqq", (models[2].measured_nats or 0) / 2)
    assert [m.label for m in models] == ["Plan", "FP16", "INT8", "INT5-B32-HQQ", "INT4"]
    sentence = verdict(plan, built).sentence
    assert f"{TIMES} the loss of uniform INT8 at 0.96{TIMES} its bytes. " in sentence
    times = ratio(quotient(own, best.measured_nats))
    assert sentence.endswith(f"The best uniform model within the same limits is INT5-B32-HQQ: {times} its loss.")
    rows = sections.rivals(plan, models)
    assert [row.label for row in rows] == ["INT8", "INT5-B32-HQQ", "INT6"]
    assert rows[1].against == times
    assert rows[2].engine == MISSING
    assert "mnnconvert --weightQuantBits 5" in render_markdown(small.table, plan, built)


def test_where_the_plain_export_is_the_best_one_the_headline_says_so(small: Run) -> None:
    found = verdict(with_rivals(small, ["int8", "int8-hqq"]), small.verification)
    assert found.sentence.endswith("its bytes. No uniform model within the same limits is better than that one.")


def test_losses_of_float_rounding_are_no_ratio(small: Run) -> None:
    tiny = tuple(
        replace(m, runs=tuple(replace(r, accuracy=replace(r.accuracy, kl_nats=1e-8 * (1 + i))) for r in m.runs))
        for i, m in enumerate(small.verification.models)
    )
    found = verdict(with_rivals(small, ["int8"]), replace(small.verification, models=tiny))
    assert "no more loss than uniform INT8, at 0.96" in found.sentence
    assert [tile.comparison for tile in found.tiles if tile.label.startswith("KL")] == [""]


def test_one_failed_check_fails(small: Run) -> None:
    found = verdict(small.plan, verification_of(small.plan, failing=True))
    assert found.status is Status.FAIL
    assert found.checks == "1 of 7 checks failed"


def test_no_checks_are_no_pass(small: Run) -> None:
    assert verdict(small.plan, replace(small.verification, checks=())).status is Status.FAIL


def test_without_a_build_it_says_so(small: Run) -> None:
    found = verdict(small.plan, None)
    assert found.status is Status.UNVERIFIED
    assert "predicted, not built" in found.sentence
    assert len(found.tiles) == 2


def test_a_prediction_is_not_compared_with_a_measurement(small: Run) -> None:
    others = tuple(m for m in small.verification.models if m.name != "plan")
    found = verdict(small.plan, replace(small.verification, models=others))
    assert "the loss of uniform" not in found.sentence
    assert "the bytes of uniform INT8" in found.sentence


def test_without_uniform_models(small: Run) -> None:
    found = verdict(replace(small.plan, uniform=()), None)
    assert found.sentence.endswith("not built.")


def test_price_of_the_logits_rule(small: Run) -> None:
    words = sections.price_of_the_logits_rule(small.plan)
    assert "8 bits or more" in words
    assert "the head would be int6; the rule costs 1.4e-5 nats/token" in words
    free = replace(small.plan, logits=replace(small.plan.logits, price_nats=0.0))
    assert "did not bind" in sections.price_of_the_logits_rule(free)


def test_rows_without_any_value_are_left_out(small: Run) -> None:
    models = contenders(small.plan, None)
    groups = sections.sizes_and_speeds(models, baseline(small.plan, models))
    assert [g.title for g in groups] == ["Files"]
    assert "embeddings_bf16.bin" not in [row.label for row in groups[0].rows]


def test_predictions_cover_both_settings(small: Run) -> None:
    rows = sections.predictions(contenders(small.plan, small.verification))
    assert [(r.label, r.memory) for r in rows[:4]] == [(n, "low") for n in ("Plan", "FP16", "INT8", "INT4")]
    assert len(rows) == 8
    assert rows[4].predicted == "–"  # noqa: RUF001 - sums hold for the plan's own setting


def test_both_dynamic_options_are_shown_and_the_one_that_ships_speaks_for_the_plan(small: Run) -> None:
    plan, *uniform = small.verification.models
    assert plan.name == "plan"
    assert plan.speed is not None
    shipped = [replace(r, dynamic_option=2, accuracy=replace(r.accuracy, kl_nats=1e-5)) for r in plan.runs]
    both = replace(
        plan,
        runs=(*plan.runs, *shipped),
        dynamic_option=2,
        speed=replace(plan.speed, dynamic_option=2),
        other_speed=replace(plan.speed, decode_tokens_per_s=777.0),
    )
    verification = replace(small.verification, models=(both, *uniform))
    own = contenders(small.plan, verification)[0]
    assert own.measured_nats == 1e-5
    token, block = sections.dynamic_options(own)
    assert (token.ships, block.ships) == (False, True)
    assert token.decode_speed == "777"
    assert block.prefill != token.prefill
    shown = "dynamic_option: activations scaled by token"
    for render in (render_html, render_markdown):
        assert shown in render(small.table, small.plan, verification)
        assert shown not in render(small.table, small.plan, small.verification)
