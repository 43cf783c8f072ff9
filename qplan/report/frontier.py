"""The frontier as a figure and as Markdown: one list of plans and uniform models by size."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from qplan.report import notation
from qplan.report.frontier_rows import frontier_rows
from qplan.report.literal import figure_text, markdown
from qplan.run.frontier import Frontier, FrontierPoint, MeasuredModel, UniformModel
from qplan.run.table import SensitivityTable

_PLAN, _UNIFORM, _INK = "#1f6f9f", "#c2571a", "#17191d"


def frontier_markdown(table: SensitivityTable, frontier: Frontier) -> str:
    """The frontier's table in Markdown, for a pull request."""
    apart = table.model.embedding is not None
    lines = [
        f"# Frontier of {markdown(notation.model_name(table.model.source))}",
        "",
        (
            f"Predicted KL to FP32 in nats per token, memory {table.goal}; {len(frontier.points)} plans solved in "
            f"{frontier.seconds:.1f} s. Uniform models have the head at 8 bits and the plans' rounding. RAM of the "
            "weights, and times over those of uniform int8, are predicted; plans with a name take no more of them than "
            "the uniform model of that name. Bits are shares of the weights without "
            f"{'the head and the embedding' if apart else 'the head'}."
        ),
        "",
        (
            "| bytes | bits per weight | RAM, MB | decode | prefill | predicted KL | of uniform's | "
            f"bits: share of the weights | head |{' embedding |' if apart else ''} |"
        ),
        f"|---:|---:|---:|---:|---:|---:|---:|---|---|{'---|' if apart else ''}---|",
    ]
    for row in frontier_rows(table, frontier):
        name = f"**{row.label}**" if row.label else ""
        widths = ", ".join(f"{bits}: {share:.0%}" for bits, share in row.widths.items() if share >= 0.005)
        bpw = notation.MISSING if row.bpw is None else f"{row.bpw:.2f}"
        ram = notation.MISSING if row.ram_bytes is None else f"{row.ram_bytes / 1e6:,.2f}"
        lines.append(
            f"| {row.total_bytes:,} | {bpw} | {ram} | {notation.ratio(row.decode)} | {notation.ratio(row.prefill)} "
            f"| {notation.loss(row.joint_nats)} | {notation.ratio(row.against_uniform)} "
            f"| {widths} | {row.head} |{f' {row.embedding} |' if apart else ''} {name} |"
        )
    return "\n".join([*lines, ""])


def frontier_figure(table: SensitivityTable, frontier: Frontier, measured: Sequence[MeasuredModel] = ()) -> Figure:
    """Loss over file size: the frontier with its knees, the uniform models, and what the engine measured."""
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    lossy = [point for point in frontier.points if point.joint_nats > 0]
    uniform = [model for model in frontier.uniform if model.joint_nats > 0]
    least = min((point.joint_nats for point in lossy), default=0.0)
    axes.set_yscale("log")
    axes.plot(
        [_mb(p) for p in lossy],
        [p.joint_nats for p in lossy],
        color=_PLAN,
        marker="o",
        markersize=4,
        label="qplan, predicted",
    )
    # no line to fp16: nothing uniform lies between it and int8
    for part, label in (
        ([m for m in uniform if m.name != "fp16"], "uniform with the same rounding, predicted"),
        ([m for m in uniform if m.name == "fp16"], None),
    ):
        axes.plot(
            [_mb(m) for m in part],
            [m.joint_nats for m in part],
            color=_UNIFORM,
            marker="s",
            markersize=5,
            linestyle=":",
            label=label,
        )
    for is_plan, label, marker, color in (
        (True, "qplan, measured on the engine", "D", _PLAN),
        (False, "MNN's uniform export, measured on the engine", "X", _UNIFORM),
    ):
        found = [m for m in measured if m.is_plan == is_plan and m.kl_nats > least / 2]
        if found:
            axes.scatter(
                [_mb(m) for m in found],
                [m.kl_nats for m in found],
                marker=marker,
                s=70,
                facecolor=color,
                edgecolor="white",
                linewidth=0.8,
                zorder=4,
                label=label,
            )
    for model in uniform:
        axes.annotate(
            model.name, (_mb(model), model.joint_nats), (6, 4), textcoords="offset points", color=_UNIFORM, fontsize=9
        )
    bends = [point for point in lossy if point.knee]
    axes.scatter(
        [_mb(p) for p in bends],
        [p.joint_nats for p in bends],
        s=110,
        facecolor="none",
        edgecolor=_INK,
        linewidth=1.2,
        zorder=5,
        label="knee: below it bytes buy much, above it less",
    )
    for point in bends:
        text = f"{notation.size(point.total_bytes)}\n{point.bpw:.2f} bpw"
        place = (_mb(point), point.joint_nats)
        axes.annotate(text, place, (-6, -4), textcoords="offset points", ha="right", va="top", color=_INK, fontsize=9)
    lossless = next((point for point in frontier.points if point.joint_nats == 0), None)
    if lossless is not None:
        axes.axvline(_mb(lossless), color=_PLAN, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "lossless",
            (_mb(lossless), 0.5),
            (-4, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="center",
            color=_PLAN,
            fontsize=9,
        )
    axes.margins(x=0.12)  # room for the text beside the first knee
    axes.set_xlabel("files that ship, MB")
    axes.set_ylabel(f"KL to FP32 at memory {table.goal}, nats/token")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda nats, _: notation.tick(nats)))
    axes.set_title(figure_text(f"{notation.model_name(table.model.source)}: what bytes buy"), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e3e0da", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="upper right", facecolor="white", edgecolor="none", framealpha=1)
    return figure


def _mb(model: FrontierPoint | UniformModel | MeasuredModel) -> float:
    return model.total_bytes / 1e6
