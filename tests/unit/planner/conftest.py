"""The invented model's table, for every test of the planner."""

from __future__ import annotations

import pytest

from qplan.cost.file_bytes import FixedBytes
from qplan.sensitivity.table import SensitivityTable
from tests.unit.planner.invented_table import make_table


@pytest.fixture
def table() -> SensitivityTable:
    """Four layers of three tensors and a tied head, in fp16, int8, int6 and int4."""
    return make_table()


@pytest.fixture
def fixed(table: SensitivityTable) -> FixedBytes:
    """What the model's files hold besides."""
    return FixedBytes(8 * table.model.norm_weights, 0, 20_000, exact=True)
