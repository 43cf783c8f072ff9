"""The report as a page and as Markdown: pure functions of the artifacts, and one that writes both files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from qplan.artifact import write_text
from qplan.errors import StaleArtifactError
from qplan.notes import Note
from qplan.report import (
    comparison,
    heat_map,
    next_steps,
    notation,
    palette,
    plan_map,
    samples,
    sections,
    tensor_rows,
    trade_off,
)
from qplan.report.arm import arm_rows
from qplan.report.grid import grid_of, heat_scale, loss_table
from qplan.report.literal import markdown, markdown_code
from qplan.report.page_data import embedded, page_data
from qplan.report.summary import Contender, baseline, contenders, name_of, verdict
from qplan.report.words import ENGLISH, Words
from qplan.run.frontier import Frontier
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.provenance import Provenance
from qplan.run.table import SensitivityTable
from qplan.run.verification import Verification

TOP_TENSORS = 12
"""Rows of the table of tensors that Markdown and paper show."""


def render_html(
    table: SensitivityTable,
    plan: Plan,
    verification: Verification | None,
    provenance: Provenance | None = None,
    *,
    frontier: Frontier | None = None,
    words: Words = ENGLISH,
) -> str:
    """Render the page: one self-contained document, the same bytes for the same input."""
    context = _context(table, plan, verification, provenance, frontier=frontier, words=words)
    return environment().get_template("report.html.j2").render(context | {"t": marked(words)})


def render_markdown(
    table: SensitivityTable,
    plan: Plan,
    verification: Verification | None,
    provenance: Provenance | None = None,
    *,
    words: Words = ENGLISH,
) -> str:
    """Render the short version in Markdown, for a pull request."""
    context = _context(table, plan, verification, provenance, frontier=None, words=words)
    text = environment().get_template("report.md.j2").render(context | {"t": words})
    # omitted parts leave blank lines behind
    return re.sub(r"\n{3,}", "\n\n", text)


def write_report(
    folder: Path,
    table: SensitivityTable,
    plan: Plan,
    verification: Verification | None,
    provenance: Provenance | None = None,
    *,
    frontier: Frontier | None = None,
    words: Words = ENGLISH,
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` into a folder.

    Args:
        folder: the budget's folder in the run; made if it is missing.
        table: the losses that were measured.
        plan: the plan that was chosen.
        verification: what the engine measured; None if nothing was built.
        provenance: command lines and versions; by default the installed versions.
        frontier: plans at other budgets from the same table; None leaves that section out.
        words: the report's words in its language.

    Returns:
        The paths of the page and of the Markdown.

    Raises:
        StaleArtifactError: table, plan and verification don't belong together.
    """
    _check_belonging(table, plan, verification)
    page, short = PlanFolder(folder).report, PlanFolder(folder).short_report
    html = render_html(table, plan, verification, provenance, frontier=frontier, words=words)
    write_text(page, html)
    write_text(short, render_markdown(table, plan, verification, provenance, words=words))
    return page, short


def _check_belonging(table: SensitivityTable, plan: Plan, verification: Verification | None) -> None:
    hashes = {"table": table.model.sha256, "plan": plan.model_sha256}
    if verification is not None:
        hashes["verification"] = verification.model_sha256
    if len(set(hashes.values())) > 1:
        found = ", ".join(f"{what} of {sha[:12]}" for what, sha in hashes.items())
        msg = f"the artifacts come from different models ({found}); run 'qplan emit' again"
        raise StaleArtifactError(msg)
    if {t.name for t in plan.tensors} != {t.name for t in table.model.planned}:
        msg = "the plan's tensors are not those of the sensitivity table; run 'qplan emit' again"
        raise StaleArtifactError(msg)
    if plan.sensitivity_sha256 != table.sha256:
        msg = (
            f"the plan was made from table {plan.sensitivity_sha256[:12]}, this one is {table.sha256[:12]}; "
            "run 'qplan emit' again"
        )
        raise StaleArtifactError(msg)


def _without_paths(note: Note) -> Note:
    """A note without paths of this machine, which the name of a text may hold; see `notation.place`."""
    return replace(note, values={k: notation.place(v) if isinstance(v, str) else v for k, v in note.values.items()})


def marked(words: Words) -> Callable[..., Markup]:
    """The words for the page: messages may hold HTML elements, values are escaped."""

    def message(text: str, /, **values: object) -> Markup:
        return words.filled(Markup(words.pattern(text)), values)  # noqa: S704 - the catalog is part of qplan

    return message


def breakable(name: str) -> Markup:
    """A tensor's name that lines break after its dots, and nowhere else as long as a part fits."""
    return Markup(".<wbr>").join(name.split("."))


def environment() -> Environment:
    """The templates' environment, with the notation as filters."""
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
        "digits": notation.digits,
        "breakable": breakable,
        "place": notation.place,
        "text": markdown,
        "code": markdown_code,
    }
    return environment


def _context(
    table: SensitivityTable,
    plan: Plan,
    verification: Verification | None,
    provenance: Provenance | None,
    *,
    frontier: Frontier | None,
    words: Words,
) -> dict[str, Any]:
    # tensors are found by their place in the model: the plan's own order may be another
    order = {spec.name: place for place, spec in enumerate(table.model.planned)}
    plan = replace(plan, tensors=tuple(sorted(plan.tensors, key=lambda tensor: order[tensor.name])))
    models = contenders(plan, verification)
    base = baseline(plan, models)
    grid, losses = grid_of(table.model.planned), loss_table(table)
    scale = heat_scale(losses)
    ranked, shares = losses.ranked(), plan_map.format_shares(plan)
    shown = None if verification is None else verification.samples

    def called(model: Contender) -> str:
        return name_of(model, words)

    return {
        "language": words.language,
        "note": words.note,
        "status": words.status,
        "space": words.space,
        "name_of": called,
        "table": table,
        "card": table.model,
        "conditions": table.conditions,
        "plan": plan,
        "planned": {tensor.name: tensor for tensor in plan.tensors},
        "verification": verification,
        "heldout": "" if verification is None else words.note(_without_paths(verification.text)),
        "provenance": provenance or Provenance(),
        "title": table.model.source.rstrip("/").rpartition("/")[2] or table.model.source,
        "verdict": verdict(plan, verification, words),
        "models": models,
        "grid": grid,
        "shares": shares,
        "primed": any(plan_map.PRIME in share.mark for share in shares),
        "plan_map": plan_map.draw(plan, grid, words),
        "losses": losses,
        "ranked": ranked,
        "top": ranked[:TOP_TENSORS],
        "top_tensors": TOP_TENSORS,
        "rows": tensor_rows.tensor_rows(plan, losses, scale),
        "kinds": sorted({name.rpartition(".")[2] for name in ranked}),
        "sums": {f: sum(row[f].kl_nats for row in losses.losses.values() if f in row) for f in losses.formats},
        "panels": [(f, heat_map.draw(losses, grid, scale, f, words)) for f in losses.formats],
        "heat_key": None if scale is None else heat_map.key(scale, words),
        "frontier": frontier,
        "trade_off": None if frontier is None else trade_off.draw(frontier, plan, words),
        "legend": trade_off.legend(words),
        "stops": () if frontier is None else trade_off.stop_rows(table, frontier, plan, words),
        "own_stop": None if frontier is None else trade_off.nearest_stop(frontier, plan),
        "data": embedded(page_data(table, plan, losses, frontier, words)),
        "predicted_vs_measured": comparison.predicted_vs_measured(models, words),
        "dynamic_options": sections.dynamic_options(models[0], words),
        "arm": () if verification is None else arm_rows(verification.arm),
        "predictions": sections.predictions(models, words),
        "size_vs_loss": comparison.size_vs_loss(models, words),
        "sizes_and_speeds": sections.sizes_and_speeds(models, base, words),
        "rivals": sections.rivals(plan, models),
        "samples": () if shown is None else samples.sample_rows(shown, words),
        "sample_counts": "" if shown is None else samples.sample_counts(shown, words),
        "next_steps": next_steps.next_steps(plan, verification, frontier, words),
        "took": [sections.taken(took, words) for took in (provenance or Provenance()).took],
        "logits_price": sections.price_of_the_logits_rule(plan, words),
        "plan_text": plan_map.as_text(plan, grid, words),
        "calibration_perplexity": math.exp(table.reference_nll_nats),
        "bits": {bits: (fill, palette.text_on(fill)) for bits, fill in palette.BITS.items()},
        "heat_light": [(fill, palette.text_on(fill)) for fill in palette.ramp(palette.HEAT_LIGHT)],
        "heat_dark": [(fill, palette.text_on(fill)) for fill in palette.ramp(palette.HEAT_DARK)],
    }
