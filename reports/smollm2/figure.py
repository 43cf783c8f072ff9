"""KL against files, RAM and time per token: qplan's plans, MNN's uniform exports, llama.cpp's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from reports.smollm2.gguf_page import rate_of
from reports.smollm2.labels import FLOAT, OFFICIAL, PLAN

mpl.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402 - after its back end is chosen
from matplotlib.axes import Axes  # noqa: E402

from qplan.explore import style  # noqa: E402

AXES = ("files, MB", "RAM after loading, MB", "decode, ms per token, one thread")
QPLAN, LIMITS, UNIFORM, RECIPE, GGUF = (
    "qplan, files alone",
    "qplan, within uniform's files, RAM and speed",
    "MNN, uniform",
    "MNN, llmexport --hqq",
    "llama.cpp, GGUF",
)
LOOKS: dict[str, dict[str, Any]] = {
    QPLAN: {"marker": "o", "color": style.PLAN, "markerfacecolor": "white", "linestyle": "-", "linewidth": 1.2},
    LIMITS: {"marker": "o", "color": style.PLAN, "linestyle": ""},
    UNIFORM: {"marker": "s", "color": style.UNIFORM, "linestyle": ""},
    RECIPE: {"marker": "D", "color": style.UNIFORM, "markerfacecolor": "white", "linestyle": ""},
    GGUF: {"marker": "^", "color": style.THIRD, "linestyle": ""},
}

LOWERED = frozenset({"Q5_K_M"})
"""Names that would lie on a neighbor's."""


@dataclass(frozen=True)
class Point:
    """A model."""

    series: str
    label: str
    kl_nats: float
    places: tuple[float | None, float | None, float | None]
    """On each of `AXES`; None where that was not measured."""


def points(results: Mapping[str, Any]) -> Iterator[Point]:
    """Every model but those in floats and those for phones."""
    for row in results["rows"]:
        if row["for_phones"] or row["name"] == FLOAT:
            continue
        speed, name = results["speeds"][row["name"]], str(row["name"])
        rate = rate_of(results, name, "decode") if results["gguf"]["speeds"] else speed["decode_tokens_per_s"]
        yield Point(_series(row), _label(row), row["here"]["kl_nats"], _places(row["file_bytes"], speed, rate))
    for file in results["gguf"]["files"]:
        if file["name"] != "F32":
            places = _places(file["file_bytes"], file, rate_of(results, file["name"], "decode"))
            yield Point(GGUF, file["name"], file["here"]["kl_nats"], places)


def _places(file_bytes: int, speed: Mapping[str, Any], rate: float | None) -> tuple[float, float, float | None]:
    return file_bytes / 1e6, speed["ram_bytes"] / 1e6, 1e3 / rate if rate else None


def _series(row: Mapping[str, Any]) -> str:
    name = str(row["name"])
    if name.startswith(PLAN):
        return QPLAN if row["beside"] is not None or name.endswith("-files") else LIMITS
    return RECIPE if name == OFFICIAL else UNIFORM


def _label(row: Mapping[str, Any]) -> str:
    name = str(row["name"])
    if row["beside"] is not None or name.endswith("-files"):
        return ""
    plain = name.removeprefix(PLAN)
    return plain.upper() if plain in {"int8", "int4"} else ""


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write the figure."""
    found = list(points(results))
    figure, axes = plt.subplots(1, len(AXES), figsize=(13, 4.8), sharey=True, layout="constrained")
    for number, (axis, name) in enumerate(zip(axes, AXES, strict=True)):
        for series, look in LOOKS.items():
            _series_on(axis, [point for point in found if point.series == series], number, look, series)
        axis.set_xlabel(name, color=style.INK)
        axis.margins(x=0.2, y=0.12)
        style.quiet(axis)
    style.log_nats(axes[0], "y")
    axes[0].set_ylabel("KL to FP32, nats per token", color=style.INK)
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=len(LOOKS), frameon=False)
    figure.savefig(path, dpi=144)
    plt.close(figure)


def _series_on(axis: Axes, found: list[Point], number: int, look: Mapping[str, Any], series: str) -> None:
    placed = sorted(
        (place, point.kl_nats, point.label) for point in found if (place := point.places[number]) is not None
    )
    if not placed:
        return
    line = look if number == 0 else {**look, "linestyle": ""}  # a frontier of files alone is none of RAM or time
    axis.plot([x for x, *_ in placed], [y for _, y, _ in placed], label=series, markersize=7, **line)
    # names of what lies close together stand on either side
    across, side = (-7, "right") if series == GGUF else (7, "left")
    for x, y, text in placed:
        where = (across, -12 if text in LOWERED else -3)
        axis.annotate(text, (x, y), where, textcoords="offset points", ha=side, fontsize=8, color=look["color"])
