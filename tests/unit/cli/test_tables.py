"""Tables in a terminal of 80 columns."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.table import Table

from qplan.cli.console import Terminal
from qplan.cli.frontier_table import frontier_table
from qplan.cli.tables import quantized_table, verification_table
from qplan.formats import QuantFormat
from qplan.jobs.frontier import Swept
from qplan.report import notation
from qplan.run.frontier import Frontier
from qplan.run.verification import BuiltModel
from tests.support.invented_run import Run, small_run, sweep_of, swept_run, untied_run


def _larger(model: BuiltModel) -> BuiltModel:
    """A model of 12 GB that cannot guess its text at all, under both options."""
    runs = tuple(
        replace(run, accuracy=replace(run.accuracy, perplexity=557_669.66), dynamic_option=option)
        for run in model.runs
        for option in (0, 2)
    )
    files = replace(model.files, weight=12_345_678_901)
    other = None if model.speed is None else replace(model.speed, dynamic_option=2)
    return replace(model, runs=runs, files=files, other_speed=other)


def _shown(view: Table, width: int = 80) -> str:
    terminal = Terminal(file=StringIO(), width=width, color_system=None)
    terminal.print(view)
    return terminal.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def _grown(frontier: Frontier, factor: int) -> Frontier:
    """Files and RAM that are so much larger, heads in a format with a long name."""
    head = {"lm_head": QuantFormat.parse("int8-b0")}
    points = tuple(
        replace(
            p,
            total_bytes=factor * p.total_bytes,
            footprint=None if p.footprint is None else replace(p.footprint, ram_bytes=factor * p.footprint.ram_bytes),
            formats=p.formats | head,
        )
        for p in frontier.points
    )
    uniform = tuple(replace(m, total_bytes=factor * m.total_bytes) for m in frontier.uniform)
    return replace(frontier, points=points, uniform=uniform)


@pytest.mark.parametrize("factor", [1, 3_000], ids=["of a megabyte", "of gigabytes"])
@pytest.mark.parametrize("run", [small_run(), untied_run()], ids=["tied", "untied"])
def test_no_number_of_the_frontier_is_cut(run: Run, factor: int) -> None:
    swept = Swept((), run.table, _grown(sweep_of(run, 6), factor), ())
    for width in (80, 120):
        text = _shown(frontier_table(swept, width), width)
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        assert all(len(line) <= width for line in text.splitlines())
        words = text.split()
        losses = [p.joint_nats for p in swept.frontier.points] + [m.joint_nats for m in swept.frontier.uniform]
        assert {notation.loss(nats) for nats in losses} <= set(words)
        assert sum(line.rstrip().endswith("uniform int8") for line in text.splitlines()) == 1


def test_the_frontier_shows_an_untied_embedding() -> None:
    run = untied_run()
    swept = sweep_of(run, 6)
    assert len({point.formats["model.embed_tokens"] for point in swept.points}) > 1
    text = _shown(frontier_table(Swept((), run.table, swept, ())))
    rows = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line.strip()}
    for point in swept.points:
        head, own = (point.formats[name].name for name in ("lm_head", "model.embed_tokens"))
        assert f" {head} {own.removesuffix('-s32')}" in rows[f"{point.total_bytes / 1e6:,.3f}"]
    assert "but the head's and the embedding's" in " ".join(text.split())
    tied = _shown(frontier_table(Swept((), small_run().table, swept_run(), ())))
    assert "embed" not in tied


def test_what_came_of_a_quantization_says_how_it_was_measured_in_short_lines() -> None:
    run = small_run()
    larger = replace(run.verification, reference_perplexity=557_669.66)
    lines = [line.strip() for line in _shown(quantized_table(run.plan, larger)).splitlines() if line.strip()]
    assert lines[-2:] == [
        "Measured on this machine's engine with 2 threads; KL in nats per token",
        "Perplexity of FP32: 557,700",
    ]


def test_large_models_and_perplexities_fit() -> None:
    verification = small_run().verification
    shown = Terminal(file=StringIO(), width=80, color_system=None)
    shown.print(verification_table(replace(verification, models=tuple(map(_larger, verification.models)))))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    rows = [line for line in text.splitlines() if line.startswith((" plan", " int8"))]
    assert len(rows) == 2
    for row in rows:
        assert "12,345.72" in row
        assert "557,700" in row
    assert text.count(" option 2") == len(verification.models)
