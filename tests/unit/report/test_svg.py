from __future__ import annotations

import pytest

from qplan.report import svg


def test_content_and_values_are_escaped() -> None:
    made = svg.element("text", "<b>", svg.element("title", "a & b"), class_="x", data_name='"', missing=None)
    assert made == '<text class="x" data-name="&#34;">&lt;b&gt;<title>a &amp; b</title></text>'


def test_an_axis_places_its_ends_and_zero() -> None:
    axis = svg.LogAxis(1e-4, 1e-2, 100.0, 300.0)
    assert [axis.place(v) for v in (1e-4, 1e-3, 1e-2, 0.0, 1.0)] == pytest.approx([100, 200, 300, 100, 300])
    assert axis.ticks() == pytest.approx((1e-4, 1e-3, 1e-2))


def test_a_short_axis_gets_finer_ticks() -> None:
    assert len(svg.LogAxis.around([3e-4, 4e-4], 0, 100).ticks()) >= 2
    assert svg.LogAxis.around([0.0], 0, 100).low < 1
