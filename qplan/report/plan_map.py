"""The plan by layer as inline SVG: kinds of tensors down, layers across, colored by bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qplan.formats import QuantFormat
from qplan.report import notation, svg
from qplan.report.grid import Grid
from qplan.report.palette import BITS
from qplan.report.words import ENGLISH, Words
from qplan.run.plan import Plan, PlannedTensor

PRIME = "\N{PRIME}"
ROOM = 1224
"""Width that a map should fit in on a wide screen, px; cells shrink to `MIN_CELL` before it grows wider."""
MIN_CELL, MAX_CELL, CELL_HEIGHT = 11.0, 48.0, 24
MARGINAL = 52
"""Width of the column of means, px."""


def label_width(labels: Sequence[str]) -> int:
    """Width of row labels set in 12 px, px."""
    return 14 + round(7.0 * max(map(len, labels), default=0))


def cell_width(layers: int, taken: float) -> float:
    """Width of a cell so that all layers fit beside ``taken`` pixels, within limits."""
    fitting = math.floor(2 * (ROOM - taken) / max(layers, 1)) / 2
    return min(MAX_CELL, max(MIN_CELL, fitting))


def layer_labels(layers: Sequence[int], left: float, width: float, y: float) -> list[Markup]:
    """Layer numbers over the columns, as many as fit."""
    stride = next(s for s in (1, 2, 5, 10, 20, 50) if s * width >= 20 or s == 50)
    return [
        svg.text(left + (index + 0.5) * width, y, str(layer), class_="axis", anchor="middle")
        for index, layer in enumerate(layers)
        if layer % stride == 0
    ]


@dataclass(frozen=True)
class FormatShare:
    """One line of the legend."""

    format: QuantFormat
    mark: str
    """Text in the cells: the bits, primed where formats of the same width differ."""
    tensors: int
    weights: float
    """Share of all planned weights."""
    bytes: int


def format_shares(plan: Plan) -> tuple[FormatShare, ...]:
    """Each format's share of the plan, widest first."""
    by_format: dict[QuantFormat, list[PlannedTensor]] = {}
    for tensor in plan.tensors:
        by_format.setdefault(tensor.format, []).append(tensor)
    total = sum(t.weights for t in plan.tensors)
    shares: list[FormatShare] = []
    same_width: dict[int, int] = {}
    # the format with the most tensors of a width goes unprimed
    for fmt, own in sorted(by_format.items(), key=lambda item: (-item[0].bits, -len(item[1]), item[0])):
        primes = same_width.get(fmt.bits, 0)
        same_width[fmt.bits] = primes + 1
        weights = sum(t.weights for t in own) / total
        shares.append(FormatShare(fmt, f"{fmt.bits}{PRIME * primes}", len(own), weights, sum(t.bytes for t in own)))
    return tuple(shares)


def mean_bits(tensors: Sequence[PlannedTensor]) -> float:
    """Size-weighted mean width without scales."""
    return sum(t.format.bits * t.weights for t in tensors) / sum(t.weights for t in tensors)


def draw(plan: Plan, grid: Grid, words: Words = ENGLISH) -> Markup:
    """Draw the map with means per kind and per layer; tensors outside the layers stand apart below."""
    planned = {tensor.name: tensor for tensor in plan.tensors}
    marks = {share.format: share.mark for share in format_shares(plan)}
    places = {tensor.name: place for place, tensor in enumerate(plan.tensors)}
    left = label_width((*grid.kinds, *(planned[name].kind for name in grid.apart), "mean bits"))
    width = cell_width(len(grid.layers), left + MARGINAL)
    right, top = left + width * len(grid.layers), 22.0
    parts = layer_labels(grid.layers, left, width, 14)
    if grid.kinds:
        parts.append(svg.text(right + MARGINAL / 2, 14, words("mean"), class_="axis", anchor="middle"))
    for row, kind in enumerate(grid.kinds):
        y = top + row * CELL_HEIGHT
        parts.append(svg.text(left - 8, y + 16, kind, class_="name", anchor="end"))
        for column, layer in enumerate(grid.layers):
            here = [planned[name] for name in grid.cells.get((kind, layer), ())]
            parts.append(_cell(here, marks, (left + column * width, y), width, places=places, words=words))
        own = [t for t in plan.tensors if t.layer is not None and t.kind == kind]
        center, mean = right + MARGINAL / 2, f"{mean_bits(own):.1f}"
        parts.append(svg.text(center, y + 16, mean, class_="mean", anchor="middle", data_kind=kind))
    y = top + len(grid.kinds) * CELL_HEIGHT
    if grid.kinds:
        parts.append(svg.text(left - 8, y + 15, words("mean bits"), class_="axis", anchor="end"))
        parts += _layer_means(plan, grid, left, width, y + 15)
        y += 30
    for name in grid.apart:
        parts.append(svg.text(left - 8, y + 16, planned[name].kind, class_="name", anchor="end"))
        parts.append(_cell([planned[name]], marks, (left, y), max(width, 40.0), places=places, words=words))
        about = f"{planned[name].format.name} · {notation.size(planned[name].bytes)}"
        where = left + max(width, 40.0) + 10
        parts.append(svg.text(where, y + 16, about, class_="axis", data_about=str(places[name])))
        y += CELL_HEIGHT
    label = words(
        "Bits of {tensors} tensors over {layers} layers, mean {mean}",
        tensors=len(plan.tensors),
        layers=len(grid.layers),
        mean=f"{plan.mean_bits:.2f}",
    )
    return svg.picture(max(right + MARGINAL, left + 220), y + 4, label, *parts, class_="map", data_map="plan")


def _layer_means(plan: Plan, grid: Grid, left: float, width: float, y: float) -> list[Markup]:
    stride = next(s for s in (1, 2, 5, 10, 20, 50) if s * width >= 24 or s == 50)
    texts = []
    for column, layer in enumerate(grid.layers):
        own = [t for t in plan.tensors if t.layer == layer]
        if layer % stride == 0:
            center = left + (column + 0.5) * width
            mean = f"{mean_bits(own):.1f}"
            texts.append(svg.text(center, y, mean, class_="mean", anchor="middle", data_layer=str(layer)))
    return texts


def _cell(
    here: Sequence[PlannedTensor],
    marks: Mapping[QuantFormat, str],
    corner: tuple[float, float],
    width: float,
    *,
    places: Mapping[str, int],
    words: Words,
) -> Markup:
    x, y = corner
    box = {"x": x + 0.75, "y": y + 0.75, "width": width - 1.5, "height": CELL_HEIGHT - 1.5, "rx": 2.0}
    if not here:
        return svg.element("rect", **box, class_="absent")
    formats = {tensor.format for tensor in here}
    bits = here[0].format.bits if len(formats) == 1 else _nearest_width(mean_bits(here))
    mark = marks[here[0].format] if len(formats) == 1 else f"{mean_bits(here):.1f}"
    small = " small" if width < 7 * len(mark) + 6 else ""
    return svg.element(
        "g",
        svg.element("title", "\n".join(_about(tensor, words) for tensor in here)),
        svg.element("rect", **box),
        svg.text(x + width / 2, y + 16, mark, anchor="middle"),
        class_=f"bits b{bits}{small}",
        data_t=" ".join(str(places[tensor.name]) for tensor in here),
    )


def _nearest_width(bits: float) -> int:
    return min(BITS, key=lambda width: abs(width - bits))


def _about(tensor: PlannedTensor, words: Words) -> str:
    loss = words("loss {loss} nats/token", loss=notation.loss(tensor.loss_nats))
    return f"{tensor.name}\n{tensor.format.name} · {notation.size(tensor.bytes)} · {loss}"


def as_text(plan: Plan, grid: Grid, words: Words = ENGLISH) -> str:
    """The map in characters, for Markdown: marks by kind and layer, 40 layers per block."""
    planned = {tensor.name: tensor for tensor in plan.tensors}
    marks = {share.format: share.mark for share in format_shares(plan)}

    def mark(names: Sequence[str]) -> str:
        here = dict.fromkeys(marks[planned[name].format] for name in names)
        return next(iter(here), "·") if len(here) < 2 else "*"

    apart = {name: " ".join(planned[name].kind.split()) for name in grid.apart}
    kinds = {kind: " ".join(kind.split()) for kind in grid.kinds}
    heading = words("layer")
    stub = max(map(len, (*kinds.values(), *apart.values(), heading)))
    lines = []
    for start in range(0, len(grid.layers), 40):
        layers = grid.layers[start : start + 40]
        lines.append(f"{heading:{stub}} " + "".join(f"{layer:>4}" for layer in layers))
        for kind, label in kinds.items():
            cells = (mark(grid.cells.get((kind, layer), ())) for layer in layers)
            lines.append(f"{label:{stub}} " + "".join(f"{cell:>4}" for cell in cells))
        lines.append("")
    lines += [f"{kind:{stub}} {marks[planned[name].format]:>4}" for name, kind in apart.items()]
    # a fence in a tensor's name must not end the block
    return "\n".join(lines).strip("\n").replace("```", "'''")
