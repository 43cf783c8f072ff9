from __future__ import annotations

import pytest

from qplan.report.grid import HeatScale, grid_of, heat_scale, loss_table
from qplan.report.palette import HEAT_STEPS
from tests.support.invented_run import Run, deep_run, make_run, small_run


@pytest.fixture(name="deep")
def _deep() -> Run:
    return deep_run()


@pytest.fixture(name="small")
def _small() -> Run:
    return small_run()


def test_attention_comes_before_mlp_and_the_head_stands_apart(small: Run) -> None:
    grid = grid_of(small.table.model.tensors)
    assert grid.kinds == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert grid.layers == tuple(range(8))
    assert grid.apart == ("lm_head",)


def test_columns_are_the_formats_that_were_asked_for() -> None:
    run = make_run(2, ("fp16", "int8", "int4"), hidden=172)
    losses = loss_table(run.table)
    assert losses.formats == ("fp16", "int8", "int4")
    assert losses.stored_as["model.layers.0.self_attn.q_proj", "int4"] == "int4-b0"
    assert all(set(row) == {"fp16", "int8", "int4"} for row in losses.losses.values())


def test_rank_uses_the_narrowest_format_that_reached_every_tensor(deep: Run) -> None:
    losses = loss_table(deep.table)
    assert "int2" not in losses.losses["lm_head"]
    assert losses.ranked_by == "int4"
    ranked = [losses.losses[name]["int4"].kl_nats for name in losses.ranked()]
    assert ranked == sorted(ranked, reverse=True)


def test_scale_spans_the_integer_formats(small: Run) -> None:
    losses = loss_table(small.table)
    scale = heat_scale(losses)
    assert scale is not None
    cells = [cell.kl_nats for row in losses.losses.values() for cell in row.values()]
    assert scale.high == max(cells)
    assert scale.high / scale.low <= 1e5 * (1 + 1e-9)
    assert scale.step(max(cells)) == HEAT_STEPS - 1
    assert scale.step(0.0) == 0


def test_steps_grow_with_the_loss() -> None:
    scale = HeatScale(1e-6, 1e-2)
    assert [scale.step(v) for v in (1e-7, 1e-6, 1.1e-4, 1e-2, 1.0)] == [0, 0, 12, 23, 23]
    assert scale.decades == pytest.approx((1e-6, 1e-5, 1e-4, 1e-3, 1e-2))
