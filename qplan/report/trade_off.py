"""What other budgets would buy: the stored frontier as inline SVG and as rows, with the plan and uniform formats."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from qplan.formats import QuantFormat
from qplan.report import notation, svg
from qplan.report.frontier_rows import UNIFORM_EMBEDDING, against_uniform, shares
from qplan.report.labels import Box, Labels
from qplan.report.log_grid import log_grid
from qplan.report.words import ENGLISH, Words
from qplan.run.frontier import Frontier, FrontierPoint
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.tensors import Role

_WIDTH, _LEFT, _TOP, _BOTTOM = 560.0, 54.0, 26.0, 300.0

_DECADES = 6.0
"""Most decades of the axis of losses."""


@dataclass(frozen=True)
class StopRow:
    """One plan of the frontier or one uniform model, as the page's table shows it."""

    stop: int | None
    """Place in the frontier; None for a uniform model."""
    name: str
    """Name of a uniform model; empty for a plan."""
    marks: str
    """Why a plan stands out: a knee, this plan's own place; may be empty."""
    size: str
    bpw: str
    loss: str
    against: str
    """Loss over that of the best uniform model of at most these bytes."""
    widths: tuple[tuple[int, float], ...]
    """Width and share of the weights, without head and embedding; empty for uniform models."""
    head: tuple[QuantFormat, ...]
    embedding: QuantFormat | None
    """Format of an untied embedding; None where the plans hold none."""


def nearest_stop(frontier: Frontier, plan: Plan) -> int:
    """The largest plan of the frontier that is not larger than ``plan``; the smallest if all are larger."""
    fitting = [i for i, point in enumerate(frontier.points) if point.total_bytes <= plan.files.total]
    return max(fitting, default=0)


def stop_rows(table: SensitivityTable, frontier: Frontier, plan: Plan, words: Words = ENGLISH) -> tuple[StopRow, ...]:
    """Plans and uniform models in one list, bytes ascending."""
    own = nearest_stop(frontier, plan)
    rows = [
        (point.total_bytes, False, _plan_row(table, frontier, place, words, is_own=place == own))
        for place, point in enumerate(frontier.points)
    ]
    rows += [
        (
            model.total_bytes,
            True,
            StopRow(
                None,
                words("uniform {name}", name=model.name.upper()),
                "",
                notation.size(model.total_bytes),
                notation.MISSING,
                notation.loss(model.joint_nats),
                notation.MISSING,
                (),
                (QuantFormat.parse("fp16" if model.name == "fp16" else "int8"),),
                None if table.model.embedding is None else UNIFORM_EMBEDDING,
            ),
        )
        for model in frontier.uniform
    ]
    return tuple(row for *_, row in sorted(rows, key=lambda row: row[:2]))


def _plan_row(table: SensitivityTable, frontier: Frontier, place: int, words: Words, *, is_own: bool) -> StopRow:
    point = frontier.points[place]
    marks = [words("nearest to this plan")] if is_own else []
    marks += [words("knee")] if point.knee else []
    heads = dict.fromkeys(point.formats[s.name] for s in table.model.planned if s.role is Role.HEAD)
    return StopRow(
        place,
        "",
        " · ".join(marks),
        notation.size(point.total_bytes),
        f"{point.bpw:.2f}",
        notation.loss(point.joint_nats),
        notation.ratio(against_uniform(frontier, point)),
        tuple((bits, share) for bits, share in shares(table.model, point.formats).items() if share >= 0.005),
        tuple(heads),
        None if table.model.embedding is None else point.formats[table.model.embedding.name],
    )


def draw(frontier: Frontier, plan: Plan, words: Words = ENGLISH) -> Markup:
    """Predicted loss over file size, both logarithmic: the frontier, the uniform formats, this plan."""
    across, up = _axes(frontier, plan)
    parts = _grid(across, up, words)
    places = [(across.place(p.total_bytes), up.place(p.joint_nats)) for p in frontier.points]
    parts.append(svg.element("polyline", points=_points(places), class_="curve"))
    uniform = [(across.place(m.total_bytes), up.place(m.joint_nats), m) for m in frontier.uniform]
    parts.append(
        svg.element("polyline", points=_points([(x, y) for x, y, m in uniform if m.name != "fp16"]), class_="uniform")
    )
    labels, names = Labels(Box(_LEFT, -2, _WIDTH, _BOTTOM)), []
    labels.keep_free([*places, *((x, y) for x, y, _ in uniform)], 6)
    for x, y, model in uniform:
        name = words("uniform {name}", name=model.name.upper())
        about = svg.element("title", _about(name, model.total_bytes, model.joint_nats))
        box = {"x": x - 4, "y": y - 4, "width": 8.0, "height": 8.0}
        parts.append(svg.element("rect", about, **box, class_="mark other"))
        names.append(labels.place(x, y, model.name.upper(), class_="name"))
    for place, ((x, y), point) in enumerate(zip(places, frontier.points, strict=True)):
        parts.append(_stop(place, x, y, point, words))
    x, y = across.place(plan.files.total), up.place(plan.predicted_nats)
    about = svg.element("title", _about(words("this plan"), plan.files.total, plan.predicted_nats))
    diamond = f"{x:.1f},{y - 7:.1f} {x + 7:.1f},{y:.1f} {x:.1f},{y + 7:.1f} {x - 7:.1f},{y:.1f}"
    parts.append(svg.element("polygon", about, points=diamond, class_="mark emulated"))
    parts += names
    parts.append(svg.element("circle", cx=places[0][0], cy=places[0][1], r=11.0, class_="chosen", visibility="hidden"))
    label = words("Predicted loss over file size: {count} plans, uniform formats and this plan", count=len(places))
    return svg.picture(_WIDTH, _BOTTOM + 42, label, *parts, headroom=svg.HEADROOM, class_="tradeoff")


def _axes(frontier: Frontier, plan: Plan) -> tuple[svg.LogAxis, svg.LogAxis]:
    models = [(p.total_bytes, p.joint_nats) for p in frontier.points]
    models += [(m.total_bytes, m.joint_nats) for m in frontier.uniform]
    models.append((plan.files.total, plan.predicted_nats))
    sizes = [float(size) for size, _ in models]
    losses = [nats for _, nats in models]
    across = svg.LogAxis(min(sizes) * 0.97, max(sizes) * 1.03, _LEFT + 8, _WIDTH - 14)
    return across, svg.LogAxis.around(losses, _BOTTOM - 6, _TOP + 6, _DECADES)


def _grid(across: svg.LogAxis, up: svg.LogAxis, words: Words) -> list[Markup]:
    parts = [
        svg.text(0, 15, words("predicted loss, nats/token"), class_="axis"),
        svg.text(_WIDTH - 4, _BOTTOM + 36, words("files that ship"), class_="axis", anchor="end"),
        svg.element("line", x1=_LEFT, x2=_WIDTH - 6, y1=_BOTTOM, y2=_BOTTOM, class_="tick"),
    ]
    return parts + log_grid(across, up, left=_LEFT, right=_WIDTH - 6, bottom=_BOTTOM)


def _stop(place: int, x: float, y: float, point: FrontierPoint, words: Words) -> Markup:
    about = _about(words("plan at {bpw} bits per weight", bpw=f"{point.bpw:.2f}"), point.total_bytes, point.joint_nats)
    title = svg.element("title", about + (f"\n{words('knee')}" if point.knee else ""))
    ring = [svg.element("circle", cx=x, cy=y, r=7.5, class_="ring")] if point.knee else []
    dot = svg.element("circle", cx=x, cy=y, r=4.0, class_="mark engine")
    return svg.element("g", title, *ring, dot, class_="stop", data_stop=str(place))


def legend(words: Words = ENGLISH) -> tuple[tuple[Markup, str], ...]:
    """Marks of the figure and what they mean."""
    mark = {"cx": 9.0, "cy": 9.0}
    named = (
        (svg.element("circle", **mark, r=4.0, class_="mark engine"), words("best plan at its size")),
        (svg.element("circle", **mark, r=6.5, class_="ring"), words("knee: more bytes buy less above it")),
        (svg.element("rect", x=5.0, y=5.0, width=8.0, height=8.0, class_="mark other"), words("uniform format")),
        (svg.element("polygon", points="9,2 16,9 9,16 2,9", class_="mark emulated"), words("this plan")),
    )
    return tuple((svg.picture(18, 18, name, picture), name) for picture, name in named)


def _about(name: str, size: int, nats: float) -> str:
    return f"{name}\n{notation.size(size)} · {notation.loss(nats)} nats/token"


def _points(places: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
