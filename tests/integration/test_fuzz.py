"""Whatever a command is given, it ends in time with a documented exit code, and never with that of a bug."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from reports.faults.fuzz.bench import Bench
from reports.faults.fuzz.cases import cases
from reports.faults.fuzz.judge import Judge

CASES = 30
"""Of the ten thousand that ``python -m reports.faults.fuzz`` draws; about 15 seconds, and 5 for the folders."""


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Whole folders, and a place for damaged copies."""
    return Judge(Bench.make(tmp_path_factory.mktemp("bench")), tmp_path_factory.mktemp("cases"))


@settings(max_examples=CASES, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_input_ends_in_a_traceback_a_hang_or_silently_in_another_answer(judge: Judge, data: st.DataObject) -> None:
    case = data.draw(cases(judge.bench))
    verdict = judge.try_(case)
    assert not verdict.faults, f"{case}\n{verdict.outcome.stderr[-3000:]}"
