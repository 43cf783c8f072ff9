"""What a table alone says about a request."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.choosing.feasible import check_feasible, check_smallest
from qplan.choosing.request import PlanRequest
from qplan.cost.file_bytes import FixedBytes, estimate_fixed
from qplan.errors import InfeasibleError
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from tests.support.invented_table import make_table

RUN = RunFolder(Path("none"))


def request(size: int) -> PlanRequest:
    return PlanRequest(budgets=(Budget.of_bytes(size),))


def smallest(table: SensitivityTable, fixed: FixedBytes) -> int:
    """Bytes of the smallest plan, as the refusal of a budget of one byte names them."""
    with pytest.raises(InfeasibleError) as error:
        check_feasible(request(1), table, RUN, fixed)
    found = re.search(r"([\d,]+) bytes", str(error.value))
    assert found is not None
    return int(found[1].replace(",", ""))


def test_the_smallest_budget_that_passes_has_a_plan() -> None:
    table = make_table()
    fixed = replace(estimate_fixed(table.model), exact=True)
    least = smallest(table, fixed)
    check_feasible(request(least), table, RUN, fixed)
    assert make_plan(table, Budget.of_bytes(least), fixed).files.total == least
    with pytest.raises(InfeasibleError, match="is below the smallest plan"):
        check_feasible(request(least - 1), table, RUN, fixed)


def test_what_hangs_on_an_estimate_is_let_through() -> None:
    table = make_table(tied=False)
    fixed = estimate_fixed(table.model)
    assert fixed.embedding
    certain = smallest(table, fixed) - (fixed.total - fixed.embedding)
    check_feasible(request(certain), table, RUN, fixed)
    with pytest.raises(InfeasibleError):
        check_feasible(request(certain - 1), table, RUN, fixed)


@pytest.mark.parametrize("tied", [True, False])
def test_a_budget_is_refused_without_losses_where_it_is_with_them(*, tied: bool) -> None:
    table = make_table(tied=tied)
    fixed = replace(estimate_fixed(table.model), exact=True)
    menu = {spec.name: table.formats_of(spec.name) for spec in table.model.planned}
    least = smallest(table, fixed)
    check_smallest(request(least), table.model, menu, fixed)
    with pytest.raises(InfeasibleError, match=f"{least:,} bytes"):
        check_smallest(request(least - 1), table.model, menu, fixed)
