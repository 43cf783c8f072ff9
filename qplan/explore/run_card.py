"""A run's summary: in a notebook, in a terminal, in Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from qplan.errors import QplanError
from qplan.explore import html
from qplan.explore.opened import OpenedRun
from qplan.report import notation

_HEAD = ("plan", "files", "bits per weight", "predicted, nats", "measured, nats", "same top token", "checks")
_EMPTY = "no plan yet: qplan emit --budget int8, or run.solve('int8')"


@dataclass(frozen=True)
class RunCard:
    """A run's essential figures."""

    title: str
    lines: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """One row per plan, under `_HEAD`."""

    @classmethod
    def of(cls, run: OpenedRun) -> RunCard:
        """Summarize a run."""
        card, conditions = run.model, run.table.table.conditions
        layers = len({spec.layer for spec in card.tensors if spec.layer is not None})
        size = f"{card.parameters / 1e6:,.2f} M parameters, {layers} layers, {len(card.planned)} tensors planned"
        tokens = conditions.samples * conditions.seq_len
        lines = (
            f"{card.architecture}; {tokens:,} tokens of {conditions.calibration}",
            f"losses under memory {conditions.memory}, mode {conditions.mode}, rounding {conditions.rounding}",
            f"formats {', '.join(conditions.formats)}",
            f"run {run.folder}",
        )
        rows = tuple(_row(run, name) for name in run.budgets)
        title = f"{notation.model_name(card.source)}: {size}"
        return cls(title, lines if rows else (*lines, _EMPTY), rows)

    @property
    def text(self) -> str:
        """The card for a terminal."""
        return html.text_card(self.title, self.lines, *([html.text_table(_HEAD, self.rows)] if self.rows else []))

    @property
    def html(self) -> str:
        """The card for a notebook, as HTML."""
        return html.card(self.title, self.lines, *([html.rows_table(_HEAD, self.rows)] if self.rows else []))

    @property
    def markdown(self) -> str:
        """The card as Markdown."""
        table = [html.markdown_table(_HEAD, self.rows)] if self.rows else []
        return html.markdown_card(self.title, self.lines, *table)


def _row(run: OpenedRun, name: str) -> tuple[str, ...]:
    try:
        view = run.plan(name)
    except QplanError as error:  # from another analysis, or half edited: the others still show
        return (name, *[notation.MISSING] * (len(_HEAD) - 2), str(error).partition(";")[0])
    checks = () if view.verification is None else view.verification.checks
    return (
        name,
        notation.size(view.total_bytes),
        f"{view.bits_per_weight:.2f}",
        notation.loss(view.predicted_nats),
        notation.loss(None if view.measured is None else view.measured.kl_nats),
        notation.percent(None if view.measured is None else view.measured.top1),
        f"{sum(check.passed for check in checks)} of {len(checks)}" if checks else "not built",
    )
