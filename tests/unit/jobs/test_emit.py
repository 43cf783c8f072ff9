"""Which held-out tokens an emit uses for what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qplan.jobs.emit import PLANNING_TOKENS, planning_rows
from qplan.run.calibration import CalibrationSet


@pytest.mark.parametrize(
    ("samples", "heldout", "taken", "weights"),
    [
        *((16, 16, 8, 1e6), (8, 8, 8, 1e6), (64, 64, 32, 1e6), (16, 1, 1, 1e6), (16, 5, 5, 1e6), (2, 16, 8, 1e6)),
        *((2, 16, 8, 5e8), (2, 16, 5, 3e9), (16, 16, 8, 3e9), (2, 16, 2, 7e10)),
    ],
)
def test_plans_are_measured_on_half_as_many_tokens_as_the_analysis_took(
    calibration: CalibrationSet, samples: int, heldout: int, taken: int, weights: float
) -> None:
    assert PLANNING_TOKENS == 8 * 256
    rows = np.arange(heldout).repeat(256).reshape(heldout, 256)
    given = replace(calibration, tokens=np.zeros((samples, 256), np.int64), heldout=rows)
    found = planning_rows(given, int(weights))
    assert len(found) == taken
    assert found[0, 0] == 0
    assert found[-1, 0] == heldout - 1
    assert (np.diff(found[:, 0]) > 0).all()
