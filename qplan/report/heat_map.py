"""Loss by tensor and format as inline SVG: one panel per format, all on one logarithmic scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qplan.report import notation, svg
from qplan.report.grid import Grid, HeatScale, LossTable
from qplan.report.palette import HEAT_STEPS
from qplan.report.plan_map import ROOM, label_width, layer_labels
from qplan.report.words import ENGLISH, Words
from qplan.run.measurement import Loss

NUMBERED_LAYERS = 12
"""Up to this many layers, cells are wide enough to hold their layer's number."""
_NUMBERED_CELL, _MIN_CELL, _MAX_CELL, _ROW = 48.0, 11.0, 24.0, 20

_SHOWN = 6
"""Tensors of one cell that its tooltip names; the others, experts of a layer, are counted."""


@dataclass(frozen=True)
class _Panel:
    """One format's panel."""

    losses: LossTable
    scale: HeatScale | None
    column: str
    places: Mapping[str, int]
    """Place of each tensor in the page's data, by name."""
    numbered: bool
    words: Words


def draw(losses: LossTable, grid: Grid, scale: HeatScale | None, column: str, words: Words = ENGLISH) -> Markup:
    """Draw the panel of one format."""
    numbered = len(grid.layers) <= NUMBERED_LAYERS
    panel = _Panel(losses, scale, column, {name: i for i, name in enumerate(losses.losses)}, numbered, words)
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
            parts.append(_cell(panel, grid.cells.get((kind, layer), ()), left + index * width, y, width))
    y = top + len(grid.kinds) * _ROW + (8 if grid.kinds else 0)
    for name, kind in kinds.items():
        parts.append(svg.text(left - 8, y + 14, kind, class_="name", anchor="end"))
        parts.append(_cell(panel, (name,), left, y, _NUMBERED_CELL, alone=True))
        y += _ROW
    label = words("Loss of every tensor in {format}, {layers} layers", format=column, layers=len(grid.layers))
    place = str(losses.formats.index(column))
    size = max(right, left + _NUMBERED_CELL) + 2, y + 2
    return svg.picture(*size, label, *parts, class_="map", data_map="loss", data_f=place)


def _cell(panel: _Panel, names: Sequence[str], x: float, y: float, width: float, *, alone: bool = False) -> Markup:
    found = ((name, panel.losses.losses[name].get(panel.column)) for name in names)
    measured = [(name, cell) for name, cell in found if cell is not None]
    box = {"x": x + 0.5, "y": y + 0.5, "width": width - 1, "height": _ROW - 1.0}
    if not measured:
        return svg.element("rect", **box, class_="absent")
    nats = sum(cell.kl_nats for _, cell in measured)
    brief = not panel.losses.detailed
    about = [_about(name, cell, panel.words, brief=brief) for name, cell in measured[:_SHOWN]]
    if len(measured) > _SHOWN:
        about.append(panel.words("and {count} more", count=len(measured) - _SHOWN))
    parts = [svg.element("title", "\n".join(about)), svg.element("rect", **box)]
    if panel.numbered or alone:
        parts.append(svg.text(x + width / 2, y + 14, notation.loss(nats), anchor="middle"))
    step = 0 if panel.scale is None else panel.scale.step(nats)
    return svg.element(
        "g", *parts, class_=f"heat h{step}", data_t=" ".join(str(panel.places[name]) for name, _ in measured)
    )


def _about(name: str, cell: Loss, words: Words, *, brief: bool) -> str:
    if brief:
        return f"{name}\n{words('loss {loss} nats/token', loss=notation.loss(cell.kl_nats))}"
    if cell.top1 is None:
        source = words("estimated from gradients")
    else:
        source = words("same top token {share}", share=notation.percent(cell.top1))
    said = words(
        "loss {loss} ± {error} nats/token", loss=notation.loss(cell.kl_nats), error=notation.loss(cell.stderr_nats)
    )
    return f"{name}\n{said} · SQNR {notation.decibel(cell.sqnr_db)} dB · {source}"


def key(scale: HeatScale, words: Words = ENGLISH) -> Markup:
    """The color key, with a tick at every power of ten."""
    width, left = 320.0, 58.0
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
    return svg.picture(left + width + 60, 36, words("Key: color of a loss in nats per token, logarithmic"), *parts)
