"""The report as a page and as Markdown: pure functions of the artifacts, and the one that writes both."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from qplan.artifact import versions, write_text
from qplan.errors import StaleArtifactError
from qplan.planner.plan import Plan
from qplan.report import comparison, heat_map, notation, palette, plan_map, sections
from qplan.report.grid import grid_of, heat_scale, loss_table
from qplan.report.summary import Status, baseline, contenders, verdict
from qplan.sensitivity.table import SensitivityTable
from qplan.verify.record import Verification

TOP_TENSORS = 12
"""Tensors shown before the reader asks for all."""


@dataclass(frozen=True)
class Provenance:
    """What the artifacts don't hold: how to make the report again."""

    commands: tuple[str, ...] = ()
    """Command lines that lead from the model to this report."""
    versions: Mapping[str, str] = field(default_factory=versions)
    """Versions of the packages that made it."""
    machine: str = ""
    """Where the speeds were measured, e.g. the processor's name; may be empty."""


def render_html(
    table: SensitivityTable, plan: Plan, verification: Verification | None, provenance: Provenance | None = None
) -> str:
    """The page: one self-contained document, the same bytes for the same input."""
    return _environment().get_template("report.html.j2").render(_context(table, plan, verification, provenance))


def render_markdown(
    table: SensitivityTable, plan: Plan, verification: Verification | None, provenance: Provenance | None = None
) -> str:
    """The short version, for a pull request."""
    text = _environment().get_template("report.md.j2").render(_context(table, plan, verification, provenance))
    # parts that are left out leave their blank lines
    return re.sub(r"\n{3,}", "\n\n", text)


def write_report(
    folder: Path,
    table: SensitivityTable,
    plan: Plan,
    verification: Verification | None,
    provenance: Provenance | None = None,
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` into a folder.

    Args:
        folder: the budget's folder in the run; made if it is missing.
        table: what was measured.
        plan: what was chosen.
        verification: what the engine did, None if nothing was built.
        provenance: command lines and versions; by default the installed versions.

    Returns:
        The paths of the page and of the Markdown.

    Raises:
        StaleArtifactError: the three don't belong together.
    """
    _check_belonging(table, plan, verification)
    page, short = folder / "report.html", folder / "report.md"
    write_text(page, render_html(table, plan, verification, provenance))
    write_text(short, render_markdown(table, plan, verification, provenance))
    return page, short


def _check_belonging(table: SensitivityTable, plan: Plan, verification: Verification | None) -> None:
    hashes = {"table": table.model.sha256, "plan": plan.model_sha256}
    if verification is not None:
        hashes["verification"] = verification.model_sha256
    if len(set(hashes.values())) > 1:
        found = ", ".join(f"{what} of {sha[:12]}" for what, sha in hashes.items())
        msg = f"the artifacts are of different models ({found}); run 'qplan emit' again"
        raise StaleArtifactError(msg)
    if {t.name for t in plan.tensors} != {t.name for t in table.model.tensors}:
        msg = "the plan's tensors are not those of the sensitivity table; run 'qplan emit' again"
        raise StaleArtifactError(msg)
    if plan.sensitivity_sha256 != table.sha256:
        msg = (
            f"the plan was made from table {plan.sensitivity_sha256[:12]}, this one is {table.sha256[:12]}; "
            "run 'qplan emit' again"
        )
        raise StaleArtifactError(msg)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qplan.report"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "bytes": notation.size,
        "loss": notation.loss,
        "percent": notation.percent,
        "perplexity": notation.perplexity,
        "decibel": notation.decibel,
        "significant": notation.significant,
        "sortable": notation.sortable,
        "text": notation.markdown,
        "code": notation.markdown_code,
    }
    return environment


def _context(
    table: SensitivityTable, plan: Plan, verification: Verification | None, provenance: Provenance | None
) -> dict[str, Any]:
    models = contenders(plan, verification)
    base = baseline(plan, models)
    grid, losses = grid_of(table.model.tensors), loss_table(table)
    scale = heat_scale(losses)
    ranked, shares = losses.ranked(), plan_map.format_shares(plan)
    return {
        "Status": Status,
        "table": table,
        "card": table.model,
        "conditions": table.conditions,
        "plan": plan,
        "planned": {tensor.name: tensor for tensor in plan.tensors},
        "verification": verification,
        "provenance": provenance or Provenance(),
        "title": table.model.source.rstrip("/").rpartition("/")[2] or table.model.source,
        "verdict": verdict(plan, verification),
        "models": models,
        "base": base,
        "grid": grid,
        "shares": shares,
        "primed": any(plan_map.PRIME in share.mark for share in shares),
        "plan_map": plan_map.draw(plan, grid),
        "losses": losses,
        "ranked": ranked,
        "top": ranked[:TOP_TENSORS],
        "sums": {f: sum(row[f].kl_nats for row in losses.losses.values() if f in row) for f in losses.formats},
        "panels": [(f, heat_map.draw(losses, grid, scale, f)) for f in losses.formats],
        "heat_key": None if scale is None else heat_map.key(scale),
        "predicted_vs_measured": comparison.predicted_vs_measured(models),
        "dynamic_options": sections.dynamic_options(models[0]),
        "predictions": sections.predictions(models),
        "size_vs_loss": comparison.size_vs_loss(models),
        "sizes_and_speeds": sections.sizes_and_speeds(models, base),
        "logits_price": sections.price_of_the_logits_rule(plan),
        "plan_text": plan_map.as_text(plan, grid),
        "calibration_perplexity": math.exp(table.reference_nll_nats),
        "bits": {bits: (fill, palette.text_on(fill)) for bits, fill in palette.BITS.items()},
        "heat_light": [(fill, palette.text_on(fill)) for fill in palette.ramp(palette.HEAT_LIGHT)],
        "heat_dark": [(fill, palette.text_on(fill)) for fill in palette.ramp(palette.HEAT_DARK)],
    }
