from __future__ import annotations

import pytest

from qplan.report import palette

FILLS = [*map(palette._fill, range(2, 33)), *palette.ramp(palette.HEAT_LIGHT), *palette.ramp(palette.HEAT_DARK)]


@pytest.mark.parametrize("fill", FILLS)
def test_text_reads_on_every_fill(fill: str) -> None:
    assert palette.contrast(fill, palette.text_on(fill)) >= 4.5


def test_a_ramp_runs_one_way_from_end_to_end() -> None:
    light, dark = palette.ramp(palette.HEAT_LIGHT), palette.ramp(palette.HEAT_DARK)
    assert (light[0], light[-1]) == (palette.HEAT_LIGHT[0], palette.HEAT_LIGHT[-1])
    assert [palette.luminance(c) for c in light] == sorted((palette.luminance(c) for c in light), reverse=True)
    assert [palette.luminance(c) for c in dark] == sorted(palette.luminance(c) for c in dark)
