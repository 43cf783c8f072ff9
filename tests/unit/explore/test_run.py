"""What a run says of itself, and what it solves."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import qplan
from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InfeasibleError, InputError, StaleArtifactError
from qplan.explore import Run, open_run
from qplan.explore.html import frame_markdown
from qplan.formats import QuantFormat
from qplan.jobs.frontier import run_frontier
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.report import notation
from qplan.run.table import SensitivityTable


def test_a_run_is_found_by_its_folder_its_parts_and_from_below(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert qplan.open_run(saved).folder == saved
    for part in ("int8", "int8/plan.json", "sensitivity.parquet"):
        assert open_run(saved / part).folder == saved
    below = saved.parent / "notebooks"
    below.mkdir(exist_ok=True)
    monkeypatch.chdir(below)
    assert open_run("tiny").folder.resolve() == saved
    with pytest.raises(InputError, match=r"holds no finished analysis .*near it are .*tiny.*make demo"):
        open_run(saved.parent)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no finished analysis under"):
        open_run()


def test_sensitivities_are_those_of_the_table(run: Run) -> None:
    frame, table = run.sensitivity, run.table.table
    assert not frame.duplicated(["tensor", "format", "memory"]).any()
    for memory in ("low", "normal"):
        losses = table.losses(memory)
        own = frame[frame["memory"] == memory].set_index(["tensor", "format"]).to_dict("index")
        assert len(own) == sum(map(len, losses.values()))
        for tensor, fmt, loss in ((t, f, loss) for t, cells in losses.items() for f, loss in cells.items()):
            row = own[tensor, fmt]
            assert row["loss_nats"] == loss.kl_nats
            assert row["low_nats"] <= loss.kl_nats <= row["high_nats"]
            assert row["high_nats"] - loss.kl_nats == pytest.approx(1.96 * loss.stderr_nats)
            assert row["bytes"] == table.model.tensor(tensor).bytes_in(QuantFormat.parse(fmt))
    assert frame["layer"].isna().sum() == (frame["role"] == "head").sum() > 0
    wide = run.table.under("normal").wide()
    assert wide.loc["lm_head", "int8"] == table.kl("normal")["lm_head"]["int8"]
    assert wide["int6"].isna()["lm_head"]


def test_a_solved_plan_is_the_planners(run: Run) -> None:
    table = run.table.table
    for budget, rules in (("int8", Rules()), ("70%", Rules(logits_bits=0, min_bits={"*.q_proj": 6}))):
        own = run.solve(budget, logits_bits=rules.logits_bits, min_bits=rules.min_bits, parity="files")
        assert (
            own.plan.formats == make_plan(table, Budget.parse(budget), estimate_fixed(table.model), rules=rules).formats
        )
        assert own.total_bytes <= own.plan.budget_bytes
    assert run.solve(own.total_bytes, logits_bits=0, min_bits={"*.q_proj": 6}).plan.formats == own.plan.formats
    assert {limit.of for limit in run.solve("int8").plan.limits} == {"int8"}
    pinned = run.solve("int8", pins={"0.mlp.down_proj": "int4"}, groups=["{layer}.self_attn.*"])
    assert pinned.plan.formats["model.layers.0.mlp.down_proj"] == QuantFormat.parse("int4")
    assert pinned.frame[pinned.frame["role"] == "attention"].groupby("layer")["format"].nunique().eq(1).all()
    assert run.solve(None, objective="smallest", max_kl=1e3).total_bytes < own.total_bytes
    assert run.solve(None, max_ram="1MB").plan.limits[0].predicted <= 1


def test_memory_settings_have_plans_of_their_own(run: Run) -> None:
    under_normal = run.solve("int8", memory="normal")
    kl = run.table.table.kl("normal")
    assert under_normal.plan.memory == "normal"
    assert all(t.loss_nats == kl[t.name][t.format.name] for t in under_normal.plan.tensors)
    found = run.across_memories("int8")
    for memory in ("low", "normal"):
        assert found[memory].min() == pytest.approx(found[memory][memory], rel=1e-9)
    with pytest.raises(InputError, match="memory 'fast' was not measured; this run has low, normal"):
        run.solve("int8", memory="fast")


def test_plans_are_found_by_budget_and_path_and_counted_again(run: Run, saved: Path, tmp_path: Path) -> None:
    plan = run.plan("int8")
    assert run.plan(saved / "int8").plan == run.plan(saved / "int8" / "plan.json").plan == plan.plan
    assert plan.verification is not None
    assert plan.measured == plan.verification.models[0].accuracy("low")
    edited = json.loads((saved / "int8" / "plan.json").read_text())
    edited["tensors"][0]["format"] = "int4" if edited["tensors"][0]["format"] != "int4" else "int6"
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(edited))
    mine = run.plan(path)
    assert mine.verification is None
    assert mine.name == "mine"
    assert list(plan.diff(mine)["tensor"]) == [edited["tensors"][0]["name"]]
    with pytest.raises(InputError, match=r"no plan 'int3'.*which has int8"):
        run.plan("int3")
    stale = edited | {"sensitivity_sha256": "0" * 64}
    path.write_text(json.dumps(stale))
    with pytest.raises(StaleArtifactError, match="other losses"):
        run.plan(path)


def test_measurements_of_a_plan_that_changed_since_are_not_shown(run: Run, saved: Path) -> None:
    path = saved / "int8" / "plan.json"
    before = path.read_text()
    path.write_text(before.replace('"notes": []', '"notes": ["mine"]'))
    again = open_run(saved)
    assert again.plan("int8").verification is None
    assert again.built == ()
    assert again.verification.empty
    assert "not built" in repr(again)
    with pytest.raises(InputError, match=r"not built from this plan.*qplan emit --budget int8"):
        again.plot_tokens("int8")
    with pytest.raises(InputError, match="holds nothing measured"):
        again.plot_predictions()
    path.write_text(before)
    assert run.built == ("int8",)


def test_a_diff_adds_up(run: Run) -> None:
    before, after = run.solve("int8"), run.solve("int4")
    changed = before.diff(after)
    assert changed["bytes"].sum() == after.total_bytes - before.total_bytes
    nats = [sum(t.loss_nats for t in view.plan.tensors) for view in (before, after)]
    assert changed["loss_nats"].sum() == pytest.approx(nats[1] - nats[0])
    assert changed["loss_nats"].abs().is_monotonic_decreasing
    kept = before.frame.set_index("tensor")["format"].eq(after.frame.set_index("tensor")["format"])
    assert set(changed["tensor"]) == set(kept[~kept].index)
    compared = before.compare(after)
    assert list(compared["more_bytes"]) == [0, after.total_bytes - before.total_bytes]
    assert compared["more_nats"].iloc[1] > 0
    assert before.diff(before).empty


def test_explanations(run: Run) -> None:
    plan = run.solve("int4")
    why = plan.explain("1.mlp.down_proj")
    assert why.sentence.startswith("model.layers.1.mlp.down_proj is ")
    assert (why.frame["choice"] == "planned").sum() == 1
    assert why.frame["bytes"].is_monotonic_increasing
    assert "nats per MB" in repr(why)
    assert len(plan.explanations) == len(plan.plan.tensors)
    with pytest.raises(InputError, match=r"matches no tensor; similar names: .*down_proj"):
        plan.explain("9.mlp.down_proj")


def test_the_logits_rule_has_a_price(run: Run) -> None:
    prices = run.price_of_logits_rule()
    assert prices["budget_bytes"].is_monotonic_increasing
    assert (prices["price_nats"] >= 0).all()
    assert prices["price_nats"].iloc[0] > 0
    assert list(run.price_of_logits_rule(["int8", "int4"])["budget"]) == ["int4", "int8"]


def test_the_frontier_is_the_stored_one_or_solved_now(run: Run, saved: Path, tmp_path: Path) -> None:
    solved = run.frontier
    assert solved["total_bytes"].is_monotonic_increasing
    assert {"plan", "uniform"} == set(solved["model"])
    measured = solved.dropna(subset="measured_nats").set_index("name")["measured_nats"]
    plan = run.plan("int8").measured
    assert plan is not None
    assert measured["int8"].min() <= plan.kl_nats <= measured["int8"].max()
    for rules, stored in ((Rules(), True), (Rules(logits_bits=0), False)):
        again = open_run(saved)
        run_frontier(again.home, rules, 6)
        found = again.frontier
        assert ((found["model"].eq("plan") & found["predicted_nats"].notna()).sum() <= 6) == stored
    (saved / "frontier" / "frontier.json").unlink()


def test_what_was_measured_stands_beside_what_was_predicted(run: Run) -> None:
    frame = run.verification
    plan = run.plan("int8")
    own = frame.query("model == 'plan' and memory == 'low' and path == 'prefill'").iloc[0]
    assert plan.measured is not None
    assert own["predicted_nats"] == plan.predicted_nats
    assert own["measured_nats"] == plan.measured.kl_nats
    assert own["emulated_nats"] > 0
    assert frame.query("memory == 'normal'")["predicted_nats"].isna().all()
    assert run.checks["passed"].all()
    assert run.built == run.budgets == ("int8",)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"budget": "7"}, "has no unit"),
        ({"pins": {"*.nothing": "int8"}}, "similar names"),
        ({"pins": {"0.mlp.down_proj": "int9"}}, "width of 9 bits does not exist"),
        ({"metric": "beauty"}, "use one of kl, kl-p99, top1"),
        ({"objective": "fun"}, "use one of loss, smallest, fastest"),
        ({"logits_bits": -1}, "must be 0"),
        ({"target": "toaster"}, "cpu-x86"),
        ({"max_decode_ms": 1.0}, "qplan profile"),
    ],
)
def test_errors_say_what_there_is(run: Run, wrong: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        run.solve(**({"budget": "int8"} | wrong))  # type: ignore[arg-type]


def test_a_budget_below_the_smallest_plan_names_it(run: Run) -> None:
    with pytest.raises(InfeasibleError, match="is below the smallest plan"):
        run.solve("1kB")


def test_reprs_say_the_figures_with_units_and_escape(run: Run, saved: Path) -> None:
    plan = run.plan("int8")
    for thing, told in (
        (run, ("M parameters", "predicted, nats", "7 of 7")),
        (run.table, ("sum, nats", "mean SQNR, dB", "int6")),
        (plan, ("bits per weight", "nats per token", "measured on the engine", "lm_head")),
        (plan.explain("lm_head"), ("nats per MB", "next best")),
    ):
        for words in (repr(thing), thing._repr_html_(), thing._repr_markdown_()):
            for part in told:
                assert part in words
        assert "<script" not in thing._repr_html_()
    name = "<b>me</b>"
    assert "&lt;b&gt;me&lt;/b&gt;" in run.solve("int8", name=name)._repr_html_()
    (saved / "broken").mkdir()
    (saved / "broken" / "plan.json").write_text("{}")
    assert "broken" in repr(open_run(saved))
    (saved / "broken" / "plan.json").unlink()


def test_frames_as_markdown() -> None:
    frame = pd.DataFrame({"a": [1234567, 2], "b": [0.25, float("nan")], "c": ["x|y", " z"]})
    assert frame_markdown(frame).splitlines()[2:] == [
        r"| 1,234,567 | 0.25 | x\|y |",
        f"| 2 | {notation.MISSING} | `' z'` |",
    ]


def test_a_table_of_another_kind_is_refused(run: Run, saved: Path) -> None:
    assert SensitivityTable.read(saved / "sensitivity.parquet").sha256 == run.table.table.sha256
