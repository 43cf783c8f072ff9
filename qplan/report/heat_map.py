"""Loss by tensor and format as inline SVG: one panel per format, all on one logarithmic scale."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qplan.report import notation, svg
from qplan.report.grid import Grid, HeatScale, LossTable
from qplan.report.palette import HEAT_STEPS
from qplan.report.plan_map import ROOM, label_width, layer_labels
from qplan.sensitivity.table import Loss

NUMBERED_LAYERS = 12
"""Up to so many layers the cells are wide enough to hold their number."""
_NUMBERED_CELL, _MIN_CELL, _MAX_CELL, _ROW = 46.0, 11.0, 24.0, 20


def draw(losses: LossTable, grid: Grid, scale: HeatScale | None, column: str) -> Markup:
    """The panel of one format."""
    numbered = len(grid.layers) <= NUMBERED_LAYERS
    kinds = {name: name.rpartition(".")[2] for name in grid.apart}
    left = label_width((*grid.kinds, *kinds.values()))
    fitting = (ROOM - left) // max(len(grid.layers), 1)
    width = _NUMBERED_CELL if numbered else float(min(_MAX_CELL, max(_MIN_CELL, fitting)))
    right, top = left + width * len(grid.layers), 20.0
    parts = layer_labels(grid.layers, left, width, 13)
    for row, kind in enumerate(grid.kinds):
        y = top + row * _ROW
        parts.append(svg.text(left - 8, y + 14, kind, class_="name", anchor="end"))
        for index, layer in enumerate(grid.layers):
            here = [(name, losses.losses[name].get(column)) for name in grid.cells.get((kind, layer), ())]
            parts.append(_cell(here, scale, left + index * width, y, width, numbered=numbered))
    y = top + len(grid.kinds) * _ROW + (8 if grid.kinds else 0)
    for name, kind in kinds.items():
        cell = [(name, losses.losses[name].get(column))]
        parts.append(svg.text(left - 8, y + 14, kind, class_="name", anchor="end"))
        parts.append(_cell(cell, scale, left, y, _NUMBERED_CELL, numbered=True))
        y += _ROW
    label = f"Loss of every tensor in {column}, {len(grid.layers)} layers"
    return svg.picture(max(right, left + _NUMBERED_CELL) + 2, y + 2, label, *parts)


def _cell(
    here: Sequence[tuple[str, Loss | None]],
    scale: HeatScale | None,
    x: float,
    y: float,
    width: float,
    *,
    numbered: bool,
) -> Markup:
    measured = [(name, cell) for name, cell in here if cell is not None]
    box = {"x": x + 0.5, "y": y + 0.5, "width": width - 1, "height": _ROW - 1.0, "rx": 1.5}
    if not measured:
        return svg.element("rect", **box, class_="absent")
    nats = sum(cell.kl_nats for _, cell in measured)
    parts = [
        svg.element("title", "\n".join(_about(name, cell) for name, cell in measured)),
        svg.element("rect", **box),
    ]
    if numbered:
        parts.append(svg.text(x + width / 2, y + 14, notation.loss(nats), anchor="middle"))
    return svg.element("g", *parts, class_=f"heat h{0 if scale is None else scale.step(nats)}")


def _about(name: str, cell: Loss) -> str:
    source = "estimated from gradients" if cell.top1 is None else f"same top token {notation.percent(cell.top1)}"
    return (
        f"{name}\nloss {notation.loss(cell.kl_nats)} ± {notation.loss(cell.stderr_nats)} nats/token · "
        f"SQNR {notation.decibel(cell.sqnr_db)} dB · {source}"
    )


def key(scale: HeatScale) -> Markup:
    """The colour key, with a tick at every power of ten."""
    width, left = 320.0, 46.0
    step = width / HEAT_STEPS
    axis = svg.LogAxis(scale.low, max(scale.high, scale.low * 1.0001), left, left + width)
    parts = [
        svg.element(
            "g",
            svg.element("rect", x=left + index * step, y=4.0, width=step + 0.3, height=12.0),
            class_=f"heat h{index}",
        )
        for index in range(HEAT_STEPS)
    ]
    parts.append(svg.text(left - 6, 14, f"≤ {notation.loss(scale.low)}", class_="axis", anchor="end"))
    parts.append(svg.text(left + width + 6, 14, notation.loss(scale.high), class_="axis"))
    for tick in scale.decades:
        x = axis.place(tick)
        parts.append(svg.element("line", x1=x, x2=x, y1=16.0, y2=20.0, class_="tick"))
        parts.append(svg.text(x, 31, notation.tick(tick), class_="axis", anchor="middle"))
    return svg.picture(left + width + 60, 36, "Key: colour of a loss in nats per token, logarithmic", *parts)
