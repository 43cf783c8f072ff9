"""A plan of a run, for people: its frame, why each tensor has its format, and what another plan would cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from qplan.explore import html
from qplan.explore.explained import MB, Explained, per_mb
from qplan.explore.frames import plan_frame
from qplan.planner.patterns import matching
from qplan.report import notation, plan_map
from qplan.report.grid import grid_of
from qplan.report.literal import figure_text
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.run.verification import Accuracy, Verification
from qplan.tensors import Role

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qplan.planner.explain import Explanation


@dataclass(frozen=True, eq=False)
class PlanView:
    """One format for every tensor, with what it promises and, once built, what the engine measured."""

    plan: Plan
    name: str
    """The budget as typed, or a name to show."""
    home: RunFolder
    """The run that it belongs to."""
    table: SensitivityTable
    """Its losses, under the plan's memory setting."""
    verification: Verification | None = None
    """What was measured on the engine; None for a plan that was not built."""
    path: Path | None = None
    """Its ``plan.json``; None for one that was solved here and not written."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files that ship."""
        return self.plan.files.total

    @property
    def predicted_nats(self) -> float:
        """Predicted KL of the whole model to FP32, nats per token."""
        return self.plan.predicted_nats

    @property
    def measured(self) -> Accuracy | None:
        """What the engine measured with the settings that the plan ships with; None if it was not built."""
        built = None if self.verification is None else self.verification.model("plan")
        return None if built is None else built.accuracy(self.plan.memory)

    @property
    def mean_bits(self) -> float:
        """Size-weighted mean width, without scales."""
        return self.plan.mean_bits

    @property
    def bits_per_weight(self) -> float:
        """Bits of the weight and embedding files per parameter: what ``4.5bpw`` means."""
        files = self.plan.files
        return 8 * (files.weight + files.embedding) / self.table.model.parameters

    @property
    def head_format(self) -> str:
        """Format of the head, which a tied embedding shares."""
        formats = self.plan.formats
        return ", ".join(formats[s.name].name for s in self.table.model.planned if s.role is Role.HEAD)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per tensor; see `qplan.explore.frames.plan_frame` for columns."""
        return plan_frame(self.plan, self.table)

    @property
    def shares(self) -> pd.DataFrame:
        """One row per format, widest first: ``format, tensors, weights_share, bytes``."""
        rows = [
            {"format": s.format.name, "tensors": s.tensors, "weights_share": s.weights, "bytes": s.bytes}
            for s in plan_map.format_shares(self.plan)
        ]
        return pd.DataFrame(rows)

    def write(self, path: str | Path) -> Path:
        """Write ``plan.json``, which ``qplan emit --plan FILE`` builds.

        Returns:
            The file.
        """
        target = Path(path)
        self.plan.write(target)
        return target

    def diff(self, other: PlanView) -> pd.DataFrame:
        """What changes from this plan to another, one row per tensor whose format does, largest change of loss first.

        Columns: ``tensor, layer, kind, before, after, bytes, loss_nats`` (both after minus before; losses of single
        tensors under this plan's memory setting), ``nats_per_mb`` (loss saved per MB added, or added per MB saved).
        For totals see `compare`.

        Raises:
            InputError: the plans are for models with other tensors.
        """
        from qplan.planner.diff import diff  # noqa: PLC0415 - scipy

        losses = self.table.kl(self.table.goal)
        rows = []
        for change in diff(self.plan, other.plan).changes:
            spec, own = self.table.model.tensor(change.name), losses[change.name]
            known = change.before.name in own and change.after.name in own
            nats = own[change.after.name] - own[change.before.name] if known else change.loss_nats
            rows.append(
                {
                    "tensor": spec.name,
                    "layer": spec.layer,
                    "kind": spec.kind,
                    "before": change.before.name,
                    "after": change.after.name,
                    "bytes": change.bytes,
                    "loss_nats": nats,
                    "nats_per_mb": -nats / change.bytes * MB if change.bytes else math.nan,
                }
            )
        columns = ["tensor", "layer", "kind", "before", "after", "bytes", "loss_nats", "nats_per_mb"]
        frame = pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})
        return frame.sort_values("loss_nats", key=abs, ascending=False, ignore_index=True)

    def compare(self, *others: PlanView) -> pd.DataFrame:
        """This plan and others, one row each: what the differences cost.

        Columns: ``plan, total_bytes, bits_per_weight, mean_bits, head, predicted_nats, measured_nats, more_bytes,
        more_nats`` (the last two: against this plan, predicted, of the whole model).
        """
        rows = [
            {
                "plan": view.name,
                "total_bytes": view.total_bytes,
                "bits_per_weight": view.bits_per_weight,
                "mean_bits": view.mean_bits,
                "head": view.head_format,
                "predicted_nats": view.predicted_nats,
                "measured_nats": math.nan if view.measured is None else view.measured.kl_nats,
                "more_bytes": view.total_bytes - self.total_bytes,
                "more_nats": view.predicted_nats - self.predicted_nats,
            }
            for view in (self, *others)
        ]
        return pd.DataFrame(rows)

    def explain(self, tensor: str) -> Explained:
        """Explain why a tensor has its format: what each alternative loses, and what a byte of budget is worth.

        Args:
            tensor: name, or a pattern that matches one, e.g. ``0.mlp.down_proj``.

        Raises:
            InputError: no such tensor, or several; names those close to it.
        """
        names = matching(tensor, [planned.name for planned in self.plan.tensors], "tensor")
        return Explained(self._explain(names[:1])[0])

    @property
    def explanations(self) -> pd.DataFrame:
        """Why every group of tensors has its format, one row each.

        Columns: ``tensor, format, bytes, loss_nats, next_best, more_bytes, more_nats, nats_per_mb`` (of the next best
        choice), ``price_nats_per_mb`` (what one more MB of budget is worth).
        """
        rows = []
        for found in self._explain(None):
            chosen, other = found.chosen, found.next_best
            rows.append(
                {
                    "tensor": found.tensor,
                    "format": found.format.name,
                    "bytes": chosen.bytes,
                    "loss_nats": chosen.loss_nats,
                    "next_best": "" if other is None else other.format.name,
                    "more_bytes": 0 if other is None else other.bytes - chosen.bytes,
                    "more_nats": math.nan if other is None else other.loss_nats - chosen.loss_nats,
                    "nats_per_mb": math.nan if other is None else per_mb(other, found.format),
                    "price_nats_per_mb": found.price_nats_per_byte * MB,
                }
            )
        return pd.DataFrame(rows)

    def _explain(self, tensors: tuple[str, ...] | None) -> tuple[Explanation, ...]:
        from qplan.choosing.request import limits_of  # noqa: PLC0415 - scipy
        from qplan.planner.explain import explain_all  # noqa: PLC0415 - scipy

        limits = limits_of(self.plan, self.table, self.home)
        return explain_all(self.table, self.plan, tensors, limits=limits)

    def plot(self) -> Figure:
        """Map of the plan: kinds of tensors down, layers across, colored by bits per weight."""
        from qplan.report.figures import plan_map as figure  # noqa: PLC0415 - matplotlib

        return figure(self.table, self.plan)

    def plot_diff(self, other: PlanView) -> Figure:
        """Maps of this plan and another, and the change of each tensor's loss in nats per token."""
        from qplan.explore.plan_figures import diff_maps  # noqa: PLC0415 - matplotlib

        changed = self.diff(other)
        nats = dict(zip(changed["tensor"], changed["loss_nats"], strict=True))
        figure = diff_maps(self.table, self.plan, other.plan, nats)
        figure.suptitle(figure_text(f"{self.name} → {other.name}"), x=0.01, ha="left", fontsize=12)
        return figure

    def _title(self) -> tuple[str, list[str]]:
        plan = self.plan
        title = (
            f"Plan {self.name} of {notation.model_name(plan.model)}: {notation.size(self.total_bytes)}, "
            f"{self.bits_per_weight:.2f} bits per weight"
        )
        measured = self.measured
        told = "not built" if measured is None else f"{notation.loss(measured.kl_nats)} measured on the engine"
        proof = f"solver: {plan.solver.status}"
        if plan.solver.status == "optimal":
            gap = plan.solver.gap
            proof = f"proved to be within {notation.percent(gap)} of the optimum" if gap else "proved optimal"
        rule = plan.logits
        priced = f"costs {notation.loss(rule.price_nats)} nats" if rule.price_nats else "costs nothing here"
        return title, [
            f"KL to FP32, nats per token, memory {plan.memory}: {notation.loss(plan.predicted_nats)} predicted, {told}",
            f"budget {plan.budget} = {plan.budget_bytes:,} bytes, {self.total_bytes:,} used; {proof}",
            f"head {self.head_format}"
            + (f"; the logits rule (at least {rule.min_bits} bits) {priced}" if rule.min_bits else "; no logits rule"),
        ]

    def __repr__(self) -> str:
        """Show what the plan promises, and draw it in characters."""
        title, lines = self._title()
        return html.text_card(title, [*lines, ""], plan_map.as_text(self.plan, grid_of(self.table.model.planned)))

    def _repr_html_(self) -> str:
        title, lines = self._title()
        return html.card(title, lines, plan_map.draw(self.plan, grid_of(self.table.model.planned)))

    def _repr_markdown_(self) -> str:
        title, lines = self._title()
        drawn = plan_map.as_text(self.plan, grid_of(self.table.model.planned))
        return html.markdown_card(title, lines, f"```text\n{drawn}\n```")
