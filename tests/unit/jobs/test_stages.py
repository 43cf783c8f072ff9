from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.cost.expected import Expected, ExpectedStage
from qplan.jobs.stages import Stages, weighted

EXPECTED = Expected(
    (
        ExpectedStage("loading", 1.0, 0),
        ExpectedStage("there: all", 3.0, 0, parts=(1.0, 1.0, 1.0)),
        ExpectedStage("back: folds", 6.0, 0, parts=(4.0, 1.0, 1.0)),
    )
)


def test_progress_never_goes_back_and_ends_at_all_of_the_work() -> None:
    shown: list[tuple[int, int]] = []
    said: list[str] = []
    stages = Stages(EXPECTED, said.append, lambda done, total: shown.append((done, total)))
    stages.begin("loading", "loading a model")
    for name, parts in (("there", 6), ("back", 3)):
        progress = stages.begin(name)
        for done in (*range(parts + 1), 1, parts):  # a stage may count again from the beginning
            progress(done, parts)
    stages.end()
    assert said == ["stage 1 of 3, loading a model", "stage 2 of 3, there: all", "stage 3 of 3, back: folds"]
    assert {total for _, total in shown} == {10_000}
    done = [done for done, _ in shown]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 10_000)


def test_parts_count_as_much_as_the_work_that_they_are() -> None:
    shown: list[int] = []
    stages = Stages(EXPECTED, lambda _line: None, lambda done, _total: shown.append(done))
    stages.begin("back")(1, 3)  # what comes before was done in an earlier run
    assert shown == [4000, 8000]
    assert weighted((4.0, 1.0, 1.0), 0.5) == pytest.approx(4.5 / 6)
    assert weighted((1.0, 1.0), 1.0) == 1.0


def test_stages_come_in_their_order() -> None:
    stages = Stages(EXPECTED, lambda _line: None, lambda _done, _total: None)
    stages.begin("back")
    with pytest.raises(ValueError, match="no stage 'there' is expected after back: folds"):
        stages.begin("there")


def test_pieces_of_a_stage_add_up_and_may_come_after_others() -> None:
    shown: list[int] = []
    said: list[str] = []
    stages = Stages(Expected(EXPECTED.stages), said.append, lambda done, _total: shown.append(done))
    pieces = replace(EXPECTED.stages[2], parts=(1.0,), units=6)
    stages.expected = Expected((*EXPECTED.stages[:2], pieces))
    stages.visit("there", "rounding a plan")(3, 3)
    stages.visit("back")(1, 2)
    stages.visit("there", "rounding what it is compared with")(1, 1)  # more than was expected
    stages.visit("back")(2, 2)
    stages.visit("unheard of", "a line")(1, 1)
    assert said == [
        "stage 2 of 3, there: all: rounding a plan",
        "stage 3 of 3, back: folds",
        "rounding what it is compared with",
        "a line",
    ]
    assert shown == sorted(shown)
    assert shown[-1] == 4000 + 6000 * 3 // 6
    assert 4000 + 6000 // 6 in shown


def test_lines_of_a_stage_are_told_where_nothing_is_expected() -> None:
    said: list[str] = []
    Stages(None, said.append, print).teller("loading")("loading a model")
    assert said == ["loading a model"]


def test_without_expectations_each_stage_shows_its_own_progress() -> None:
    shown: list[tuple[int, int]] = []
    said: list[str] = []
    stages = Stages(None, said.append, lambda done, total: shown.append((done, total)))
    stages.begin("rounding")(3, 7)
    stages.end()
    assert (said, shown) == (["rounding"], [(3, 7)])
