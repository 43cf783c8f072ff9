"""Pictures that compare the plan with uniform models: predicted against measured loss, size against loss."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qplan.report import notation, svg
from qplan.report.labels import Box, Labels
from qplan.report.log_grid import log_grid
from qplan.report.summary import Contender, name_of
from qplan.report.words import ENGLISH, Words

_ROW = 38.0

_DECADES = 5.0
"""Most decades of an axis of losses: fp16 loses a millionth of what integers lose, and would leave these no room."""


def predicted_vs_measured(models: Sequence[Contender], words: Words = ENGLISH) -> Markup | None:
    """Dots on a logarithmic axis, a row per model: predicted, torch emulation, engine."""
    shown = [m for m in models if m.loss_nats is not None]
    if not shown:
        return None
    values = [v for m in shown for _, v in _marks(m)]
    longest = max(len(name_of(model, words)) for model in shown)
    width, left, top = 450.0, max(48.0, 8.5 * longest), 30.0
    axis = svg.LogAxis.around(values, left + 14, width - 20, _DECADES)
    bottom = top + _ROW * len(shown)
    parts = [_legend(left + 14, words)]
    last = -100.0
    for tick in axis.ticks():
        x = axis.place(tick)
        parts.append(svg.element("line", x1=x, x2=x, y1=top, y2=bottom, class_="gridline"))
        if x - last > 36:
            parts.append(svg.text(x, bottom + 16, notation.tick(tick), class_="axis", anchor="middle"))
            last = x
    for row, model in enumerate(shown):
        y = top + (row + 0.5) * _ROW
        strong = " strong" if model.is_plan else ""
        parts.append(svg.text(left, y + 4, name_of(model, words), class_=f"name{strong}", anchor="end"))
        marks = [(name, value) for name, value in _marks(model) if axis.holds(value)]
        if len(marks) < len(_marks(model)):
            below = ", ".join(notation.loss(value) for _, value in _marks(model) if not axis.holds(value))
            parts.append(svg.text(axis.start - 6, y + 4, f"\N{LEFTWARDS ARROW} {below}", class_="axis"))
        if not marks:
            continue
        places = [axis.place(value) for _, value in marks]
        parts.append(svg.element("line", x1=min(places), x2=max(places), y1=y, y2=y, class_="span"))
        label = name_of(model, words)
        parts += [_mark(name, axis.place(value), y, f"{label}, {_kind(name, words)}", value) for name, value in marks]
    label = words("Predicted against measured loss, nats per token")
    return svg.picture(width, bottom + 24, label, *parts, headroom=svg.HEADROOM)


def _marks(model: Contender) -> list[tuple[str, float]]:
    named = (
        ("predicted", model.predicted_nats),
        ("torch emulation", model.emulated_nats),
        ("engine", model.measured_nats),
    )
    return [(name, value) for name, value in named if value is not None]


def _mark(kind: str, x: float, y: float, label: str, value: float | None) -> Markup:
    about = svg.element("title", f"{label}: {notation.loss(value)} nats/token") if value is not None else Markup("")
    if kind == "engine":
        return svg.element("circle", about, cx=x, cy=y, r=3.5, class_="mark engine")
    if kind == "torch emulation":
        corners = f"{x:.1f},{y - 8:.1f} {x + 8:.1f},{y:.1f} {x:.1f},{y + 8:.1f} {x - 8:.1f},{y:.1f}"
        return svg.element("polygon", about, points=corners, class_="mark emulated")
    return svg.element("circle", about, cx=x, cy=y, r=10.0, class_="mark predicted")


def _kind(kind: str, words: Words) -> str:
    named = {"predicted": words("predicted"), "torch emulation": words("torch emulation"), "engine": words("engine")}
    return named[kind]


def _legend(x: float, words: Words) -> Markup:
    parts: list[Markup] = []
    for kind, room in (("predicted", 110), ("torch emulation", 140), ("engine", 60)):
        parts += [_mark(kind, x, 11, kind, None), svg.text(x + 15, 15, _kind(kind, words), class_="axis")]
        x += room
    return svg.element("g", *parts)


def size_vs_loss(models: Sequence[Contender], words: Words = ENGLISH) -> Markup | None:
    """File size across, loss up, both logarithmic; the line joins the uniform models."""
    shown = [m for m in models if m.loss_nats is not None]
    if len(shown) < 2:
        return None
    width, height, left, bottom = 450.0, 320.0, 58.0, 276.0
    across = svg.LogAxis.around([float(m.total_bytes) for m in shown], left + 8, width - 40)
    up = svg.LogAxis.around([m.loss_nats or 0.0 for m in shown], bottom - 26, 26, _DECADES)
    parts = [
        svg.text(0, 15, words("loss, nats/token"), class_="axis"),
        svg.text(width, 312, words("size"), class_="axis", anchor="end"),
    ]
    parts += log_grid(across, up, left=left, right=width - 10, bottom=bottom)
    points = [(m, across.place(m.total_bytes), up.place(m.loss_nats or 0.0)) for m in shown]
    uniform = sorted((x, y) for m, x, y in points if not m.is_plan)
    parts.append(svg.element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in uniform), class_="uniform"))
    drawn = len(parts)
    labels = Labels(Box(left, -2, width, bottom + 2))
    labels.keep_free([(x, y) for _, x, y in points], 8)
    names = []
    for model, x, y in sorted(points, key=lambda point: not point[0].is_plan):
        about = (
            f"{name_of(model, words)}: {notation.size(model.total_bytes)}, {notation.loss(model.loss_nats)} nats/token"
        )
        mark = "mark engine" if model.is_plan else "mark other"
        dot = svg.element(
            "circle", svg.element("title", about), cx=x, cy=y, r=7.0 if model.is_plan else 5.0, class_=mark
        )
        strong = " strong" if model.is_plan else ""
        name = name_of(model, words)
        if not up.holds(model.loss_nats or 0.0):
            name += f" \N{DOWNWARDS ARROW} {notation.loss(model.loss_nats)}"
        names.append(labels.place(x, y, name, class_=f"name{strong}", below=model.is_plan))
        parts.insert(drawn, dot)
    parts += names
    label = words("File size against loss of the plan and the uniform models")
    return svg.picture(width, height, label, *parts, headroom=svg.HEADROOM)
