"""JSON of commands that take long to run, from results of the same kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qplan.cli import console
from qplan.cli.documents import analysis_document, emit_document, forecast_document, ladder_document
from qplan.cost.expected import Expected, ExpectedStage
from qplan.cost.shape import Shape
from qplan.cost.work import REFERENCE
from qplan.jobs.emitted import Emitted
from qplan.jobs.expect import AnalysisOutlook, one_pass_options
from qplan.jobs.options import AnalyzeOptions
from qplan.verify.climb import Climbed
from qplan.verify.ladder import Break, Rung
from tests.support.documented import DOCS, assert_documented, keys
from tests.support.invented_run import small_run

PAGE = DOCS / "reference" / "json.md"


def as_printed(document: dict[str, object]) -> object:
    return json.loads(console.to_json(document))


@pytest.mark.parametrize("built", [pytest.param(True, id="built"), pytest.param(False, id="planned")])
def test_emit(*, built: bool) -> None:
    run = small_run()
    verification = run.verification if built else None
    emitted = Emitted(Path("run/int8"), run.plan, verification, "python3 llmexport.py", ("no 5 bits",))
    document = emit_document(emitted)
    assert_documented(as_printed(document), keys(PAGE, "qplan emit"))
    assert document["verified"] == (True if built else None)
    assert document["model"] == ("run/int8/model" if built else None)
    demo = {"analysis": analysis_document(run.table, Path("run/sensitivity.parquet"))} | document
    assert_documented(as_printed(demo), keys(PAGE, "qplan emit") | keys(PAGE, "qplan demo"))
    assert_documented(as_printed(demo)["analysis"], keys(PAGE, "qplan analyze"))  # type: ignore[index]


def test_a_forecast() -> None:
    asked = one_pass_options(AnalyzeOptions(model="m"), Shape.of(small_run().table.model, 0))
    stages = (ExpectedStage("loading", 1.0, 2e9), ExpectedStage("back", 9.0, 3e9, 4e9))
    outlook = AnalysisOutlook(Expected(stages), REFERENCE, asked=asked)
    document = as_printed(forecast_document(outlook))
    assert_documented(document, keys(PAGE, "A dry run of qplan analyze"))


def test_ladder() -> None:
    rung = Rung("int4", float("nan"), 1e-5, 0.7, 0.5, 0.4, 900.0, 1234)
    climbed = Climbed("a text", 52.6, (rung,), Break(3, "layer 3 of 6", 0.1, 0.6, "KL"))
    document = as_printed(ladder_document(climbed))
    assert_documented(document, keys(PAGE, "qplan ladder"))
    found = document["rungs"][0]  # type: ignore[index]
    assert (found["exact_error"], found["computes"], found["holds"]) == (None, False, False)


def test_numbers_that_are_not_finite_become_null() -> None:
    assert json.loads(console.to_json({"a": [float("inf"), 1.5], "b": {"c": float("nan")}, "d": Path("x")})) == {
        "a": [None, 1.5],
        "b": {"c": None},
        "d": "x",
    }
