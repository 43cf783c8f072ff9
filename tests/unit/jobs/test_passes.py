"""Costs of measurements in passes, and a budget of them."""

from __future__ import annotations

import pytest

from qplan.formats import FP16, INT4, INT8
from qplan.jobs.passes import FORWARD, PassBudget, PassCosts
from tests.support.invented_table import make_table


def test_a_whole_format_takes_three_passes_over_4096_tokens() -> None:
    card = make_table().model
    costs = PassCosts(card, 4096, 4096, "auto")
    assert sum(costs.rounded(spec.name, INT4) for spec in card.tensors) == pytest.approx(3)
    assert sum(costs.rounded(spec.name, FP16) for spec in card.tensors) == 0
    assert PassCosts(card, 2048, 2048, "auto").rounded("lm_head", INT8) == pytest.approx(
        2 * costs.rounded("lm_head", INT8)
    )
    assert PassCosts(card, 4096, 4096, "rtn").rounded("lm_head", INT8) == 0


def test_a_replay_takes_what_lies_behind_the_tensor() -> None:
    tied, apart, some = (
        PassCosts(make_table(tied=tied).model, 4096, measured, "auto")
        for tied, measured in ((True, 4096), (False, 4096), (True, 1024))
    )
    first, last = "model.layers.0.mlp.up_proj", "model.layers.3.mlp.up_proj"
    assert tied.replayed(first) == pytest.approx(FORWARD)
    assert 0 < apart.replayed("lm_head") < apart.replayed(last) < apart.replayed(first)
    # a tied head is looked up before the first layer
    assert tied.replayed("lm_head") == pytest.approx(FORWARD)
    assert some.replayed(first) == some.reference == pytest.approx(FORWARD / 4)


def test_a_budget_is_never_overdrawn() -> None:
    budget = PassBudget(1.0)
    assert budget.take(0.75)
    assert not budget.take(0.5)
    assert budget.left == 0.25
    assert budget.take(0.25)
    assert budget.spent == 1.0
