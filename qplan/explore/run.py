"""A saved run, opened: frames, figures, and plans that are solved again in an instant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from qplan.card import ModelCard
from qplan.choosing.sizes import run_fixed_bytes
from qplan.cost.file_bytes import FixedBytes
from qplan.explore.frames import checks_frame, frontier_frame, verification_frame
from qplan.explore.plan import PlanView
from qplan.explore.run_card import RunCard
from qplan.explore.run_figures import RunFigures
from qplan.explore.saved import find_home, planned, under, verified
from qplan.explore.table import SensitivityView
from qplan.formats import QuantFormat
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.run.verification import Verification

if TYPE_CHECKING:
    from qplan.explore.slider import BudgetSlider
    from qplan.mnn.engine.engine import Engine
    from qplan.mnn.runtime import RuntimeConfig
    from qplan.run.frontier import Frontier, MeasuredModel


def open_run(path: str | Path | None = None) -> Run:
    """Open a run that `qplan analyze` or `make demo` left.

    Args:
        path: its folder, a budget's folder inside, or a file of either; None for the latest under ``qplan-runs``.

    Raises:
        InputError: no finished analysis there; names those that are near.
        StaleArtifactError: written by a newer qplan.

    Example:
        >>> run = qplan.open_run("qplan-runs/stdlib-3m")
        >>> run.sensitivity.query("format == 'int4'").nlargest(5, "loss_nats")
    """
    home = find_home(path)
    return Run(home, SensitivityView(SensitivityTable.read(home.sensitivity)))


@dataclass(frozen=True, eq=False)
class Run(RunFigures):
    """One analysis and the plans made from it. Reads what is saved; what needs the model itself says so.

    Losses are mean KL(FP32 || variant) at the logits in nats per token; bytes are of the files that ship.
    """

    home: RunFolder
    """Where its files are."""
    table: SensitivityView
    """Its losses; ``run.table.under("normal")`` for MNN's other memory setting."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.home.folder

    @property
    def model(self) -> ModelCard:
        """The model that was analyzed."""
        return self.table.table.model

    @property
    def sensitivity(self) -> pd.DataFrame:
        """One row per tensor, format and memory setting; see `qplan.explore.frames.sensitivity_frame` for columns."""
        return self.table.frame

    @property
    def budgets(self) -> tuple[str, ...]:
        """Budgets that have a plan in this run: names for `plan`."""
        return planned(self.home)

    @property
    def built(self) -> tuple[str, ...]:
        """Those that were built from this analysis and measured on the engine, large ones first."""
        return tuple(self._verified)

    @cached_property
    def fixed(self) -> FixedBytes:
        """Bytes that ship whatever the plan: exact after the first emit, an estimate before."""
        return run_fixed_bytes(self.home, self.model)

    @cached_property
    def _tables(self) -> dict[str, SensitivityTable]:
        return {memory: under(self.table.table, memory) for memory in self.table.table.memories}

    def _under(self, memory: str | None) -> SensitivityTable:
        """The table under a memory setting, kept: it is summarized once."""
        return self._tables.get(memory or self.table.memory) or under(self.table.table, memory)

    @cached_property
    def _verified(self) -> dict[str, tuple[Plan, Verification]]:
        return verified(self.home, self.table.table)

    def plan(self, name: str | Path = "int8") -> PlanView:
        """A plan that was written.

        Args:
            name: a budget of this run, or a ``plan.json`` or the folder that holds one; bytes and losses of an edited
                file are counted again.

        Raises:
            InputError: no such plan, or one that does not fit the model; says which there are.
            StaleArtifactError: it was made from other losses.
        """
        from qplan.choosing.planned import recounted  # noqa: PLC0415 - scipy
        from qplan.run.plans import find_plan  # noqa: PLC0415 - scipy

        found = find_plan(str(name), self.home)
        plan = recounted(found, self.home)
        inside = found.path.resolve().parent
        label = inside.name if inside.parent == self.folder.resolve() else found.path.stem
        record = self._verified.get(label)
        verification = record[1] if record is not None and record[0] == plan else None
        return PlanView(plan, label, self.home, self._under(plan.memory), verification, found.path)

    def solve(
        self,
        budget: str | int | Sequence[str] | None = "int8",
        *,
        pins: Mapping[str, str | QuantFormat] | None = None,
        min_bits: Mapping[str, int] | None = None,
        logits_bits: int = 8,
        groups: Sequence[str] = (),
        fused: bool = False,
        metric: str = "kl",
        memory: str | None = None,
        objective: str = "loss",
        max_kl: float | None = None,
        max_ram: str | None = None,
        max_decode_ms: float | None = None,
        max_prefill_ms: float | None = None,
        target: str = "cpu-x86",
        name: str | None = None,
    ) -> PlanView:
        """Solve for another plan: the same problem, rules and legality as `qplan emit`, in a fraction of a second.

        `qplan emit` goes on from here: it measures whole models on held-out text, repairs the plan by what it finds,
        and never ships one that is worse than uniform. Its plan may therefore differ from this one in a few tensors.

        Args:
            budget: ``int8`` or ``int4`` (as large as MNN's uniform export with the head at 8 bits), ``fp16``,
                ``4.5bpw``, ``300MB``, ``60%``, a whole number of bytes, several that all hold, or None for no limit.
            pins: format by pattern on tensor names, e.g. ``{"0.mlp.down_proj": "fp16"}``.
            min_bits: least width by such a pattern.
            logits_bits: the head and a tied embedding have at least this width, and at least the others' mean; 0 turns
                the rule off.
            groups: patterns whose tensors share a format; with ``{layer}`` in one, those of each layer do.
            fused: whether q, k, v and gate, up share a format.
            metric: what is summed and minimized: ``kl``, ``kl-p99``, ``top1``, ``perplexity``, ``sqnr``, ``cosine``.
            memory: MNN's setting that losses are taken under, ``low`` or ``normal``; None for the run's.
            objective: ``loss``, or ``smallest`` or ``fastest`` under ``max_kl``.
            max_kl: limit on the predicted KL of the whole model, nats per token.
            max_ram: limit on the RAM of the weights after loading, e.g. ``300MB``.
            max_decode_ms: limit on the time of a decoded token; needs `qplan profile`.
            max_prefill_ms: the same for the profile's prompt.
            target: where it runs: which formats are legal, what they take in RAM.
            name: for people; made from the budget if None.

        Raises:
            InputError: a budget, pattern, format or metric that is not understood; says what there is.
            InfeasibleError: no plan fits; names the nearest value.
        """
        from qplan.choosing.request import PlanRequest  # noqa: PLC0415 - scipy
        from qplan.explore import solving  # noqa: PLC0415 - scipy

        table = self._under(memory)
        rules = solving.rules_from(
            pins=pins,
            min_bits=min_bits,
            logits_bits=logits_bits,
            groups=groups,
            fused=fused,
            metric=metric,
            target=target,
        )
        wanted = PlanRequest(
            solving.budget_texts(budget),
            solving.checked_objective(objective),
            max_kl,
            None,
            max_decode_ms,
            max_prefill_ms,
            max_ram,
            rules,
        )
        plan = solving.solved(self.home, table, self.fixed, wanted)
        # the table is this run's, whatever memory setting it is seen under
        plan = replace(plan, sensitivity_sha256=self.table.table.sha256)
        return PlanView(plan, name or solving.name_of(wanted, memory), self.home, table)

    def price_of_logits_rule(self, budgets: Sequence[str | int] | None = None, logits_bits: int = 8) -> pd.DataFrame:
        """What the rule that keeps the head wide costs at several budgets, smallest first.

        Args:
            budgets: as for `solve`; None for six sizes from the smallest plan to uniform int8.
            logits_bits: of the rule.

        Returns:
            One row per budget: ``budget, budget_bytes, head`` (its format), ``head_without, nats`` (predicted KL of the
            whole model with the rule), ``nats_without, price_nats`` (their difference).

        Raises:
            InputError: a budget that is not understood.
            InfeasibleError: a budget below the smallest plan; names it.
        """
        from qplan.explore.studies import price_of_logits_rule  # noqa: PLC0415

        return price_of_logits_rule(self, budgets, logits_bits)

    def across_memories(self, budget: str | int = "int8") -> pd.DataFrame:
        """Plans made for each memory setting at one budget, judged under every setting.

        Returns:
            Sums of single losses in nats per token: rows by the setting that was planned for, columns by the one that
            the model runs under.

        Raises:
            InputError: a budget that is not understood.
            InfeasibleError: a budget below the smallest plan; names it.
        """
        from qplan.explore.studies import across_memories  # noqa: PLC0415

        return across_memories(self, budget)

    @property
    def frontier(self) -> pd.DataFrame:
        """The best plan at every size, uniform models, and what the engine measured; bytes ascending.

        From `qplan frontier`, or solved now in seconds; see `qplan.explore.frames.frontier_frame` for columns.
        """
        frontier, measured = self._swept
        return frontier_frame(frontier, measured, self.model.tensors)

    @cached_property
    def _swept(self) -> tuple[Frontier, tuple[MeasuredModel, ...]]:
        from qplan.jobs.frontier import Sweep, find_frontier, measured_models  # noqa: PLC0415 - matplotlib, scipy
        from qplan.planner.frontier import frontier  # noqa: PLC0415 - scipy

        table = self.table.table
        sweep = Sweep.of(table, Rules(), self.fixed)
        found = find_frontier([self.home.frontier], sweep) or frontier(table, self.fixed)
        return found, measured_models(self.home, table)

    def slider(self, **rules: Any) -> BudgetSlider:  # noqa: ANN401 - those of `solve`
        """A slider over budgets that solves and draws the plan again; a picture where widgets don't run.

        Args:
            rules: keyword arguments of `solve`.

        Raises:
            InfeasibleError: the rules allow no plan of any size.
        """
        from qplan.explore.slider import BudgetSlider  # noqa: PLC0415 - matplotlib

        return BudgetSlider(self, **rules)

    @property
    def verification(self) -> pd.DataFrame:
        """What the engine measured, per budget, model and setting, against what was predicted.

        See `qplan.explore.frames.verification_frame` for columns; empty before the first `qplan emit`.
        """
        return verification_frame(self._verified)

    @property
    def checks(self) -> pd.DataFrame:
        """Promises that were held against the engine, one row each: ``budget, check, passed, detail``."""
        return checks_frame(self._verified)

    def engine(self, budget: str = "int8", runtime: RuntimeConfig | None = None) -> Engine:
        """The built model of a budget on MNN's engine, in a process of its own; see `qplan.Engine`.

        Args:
            budget: of this run, or a plan's folder.
            runtime: settings of the engine; None for memory low, 1 thread.

        Raises:
            InputError: no such plan, or it was not built.
            ToolError: the engine does not load it.
        """
        from qplan.explore.built import built_folder  # noqa: PLC0415 - the engine's room
        from qplan.mnn.engine.engine import Engine  # noqa: PLC0415 - the engine's room

        return Engine(built_folder(self.plan(budget)), runtime)

    def __repr__(self) -> str:
        """Say what was analyzed and which plans there are."""
        return RunCard.of(self).text

    def _repr_html_(self) -> str:
        return RunCard.of(self).html

    def _repr_markdown_(self) -> str:
        return RunCard.of(self).markdown
