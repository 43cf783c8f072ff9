"""The grid of a figure of loss over file size, both logarithmic."""

from __future__ import annotations

from markupsafe import Markup

from qplan.report import notation, svg

_APART = 52
"""Least distance between two sizes that are written, px."""


def log_grid(across: svg.LogAxis, up: svg.LogAxis, *, left: float, right: float, bottom: float) -> list[Markup]:
    """Lines at the losses from ``left`` to ``right`` and ticks at the sizes below ``bottom``, with their values."""
    parts = []
    for tick in up.ticks():
        y = up.place(tick)
        parts.append(svg.element("line", x1=left, x2=right, y1=y, y2=y, class_="gridline"))
        parts.append(svg.text(left - 6, y + 4, notation.tick(tick), class_="axis", anchor="end"))
    last = -100.0
    for tick in across.ticks():
        x = across.place(tick)
        parts.append(svg.element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="tick"))
        if x - last > _APART:
            parts.append(svg.text(x, bottom + 18, notation.round_size(tick), class_="axis", anchor="middle"))
            last = x
    return parts
