"""What a user is told of promises that were not kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qplan.choosing.parity import RELATIVE_DECODE
from qplan.errors import VerificationError
from qplan.jobs.emitted import Emitted, check_promises
from qplan.notes import note
from qplan.run.plan import Plan, PlannedLimit
from qplan.run.verification import Check
from tests.support.invented_run import small_run

RELATIVE = PlannedLimit(RELATIVE_DECODE, 100.0, 99.0, "%", "int8")


def _told(plan: Plan, code: str) -> str:
    run = small_run()
    failed = Check(note(code, uniform="int8"), passed=False, found=note("same-timed-formats"))
    verification = replace(run.verification, checks=(failed,))
    with pytest.raises(VerificationError) as caught:
        check_promises(Emitted(Path("runs/small/int8"), plan, verification, "", ()))
    return str(caught.value)


def test_a_plan_that_is_slow_by_data_alone_names_the_profile() -> None:
    plan = replace(small_run().plan, limits=(RELATIVE,))
    assert "qplan profile --run runs/small times" in _told(plan, "decode-of-uniform")
    assert "qplan profile" in _told(plan, "prefill-of-uniform")


def test_a_profile_is_not_named_where_it_would_change_nothing() -> None:
    plan = small_run().plan
    timed = replace(plan, limits=(replace(RELATIVE, name="decode time", unit="ms"),))
    assert "qplan profile" not in _told(timed, "decode-of-uniform")
    assert "qplan profile" not in _told(replace(plan, limits=(RELATIVE,)), "ram-of-uniform")
    assert "qplan profile" not in _told(replace(plan, limits=(RELATIVE,), dynamic_option=2), "decode-of-uniform")
