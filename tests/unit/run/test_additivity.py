"""Joint losses from sums of single losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.run.additivity import JointPoint, predict_joint
from qplan.run.table import SensitivityTable
from tests.support.invented_table import make_table

POINTS = (JointPoint("low", 0.01, 0.011), JointPoint("low", 1.0, 0.5), JointPoint("low", 0.0001, 0.0001))


def test_points_are_met_and_ends_are_flat() -> None:
    for point in POINTS:
        assert predict_joint(point.sum_nats, POINTS) == pytest.approx(point.joint_nats)
    assert predict_joint(1e-6, POINTS) == pytest.approx(1e-6)
    assert predict_joint(10, POINTS) == pytest.approx(5)
    assert predict_joint(0.1, POINTS) == pytest.approx(0.1 * (1.1 * 0.5) ** 0.5)


@given(st.floats(0, 100))
def test_nothing_known_adds_up(total: float) -> None:
    assert predict_joint(total, ()) == total
    assert predict_joint(total, (JointPoint("low", 0.0, 0.0),)) == total


@given(st.floats(1e-8, 100))
def test_between_the_extremes(total: float) -> None:
    assert 0.5 * total <= predict_joint(total, POINTS) * (1 + 1e-9)
    assert predict_joint(total, POINTS) <= 1.1 * total * (1 + 1e-9)


def test_the_table_keeps_its_points(tmp_path: Path) -> None:
    points = (JointPoint("normal", 0.01, 0.012), *POINTS)
    table = replace(make_table(), joint=points)
    table.write(tmp_path / "t.parquet")
    again = SensitivityTable.read(tmp_path / "t.parquet")
    assert again.joint == points
    assert again.sha256 == table.sha256 != make_table().sha256
    assert again.predict_joint(0.01) == pytest.approx(0.012)
    assert again.predict_joint(0.01, "low") == pytest.approx(0.011)
