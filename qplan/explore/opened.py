"""A saved run: what its files hold, and plans solved again in an instant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from qplan.card import ModelCard
from qplan.choosing.request import PlanRequest, parse_objective
from qplan.choosing.sizes import run_fixed_bytes
from qplan.cost.file_bytes import FixedBytes
from qplan.cost.target import DEFAULT_TARGET
from qplan.errors import InfeasibleError, InputError
from qplan.explore.frames import checks_frame, frontier_frame, verification_frame
from qplan.explore.plan import PlanView
from qplan.explore.saved import under
from qplan.explore.table import SensitivityView
from qplan.formats import QuantFormat
from qplan.planner.rules import Rules
from qplan.planner.size import Size
from qplan.run.folder import RunFolder
from qplan.run.frontier import Frontier, MeasuredModel, find_frontier
from qplan.run.verified import VerifiedPlan
from qplan.settings import DynamicOption


def _unheard(_line: str) -> None:
    """Takes what a command would tell."""


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """The saved files of one analysis, and the planner on top of them; `qplan.explore.run.Run` draws figures of it.

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
        return tuple(found.folder.name for found in self.home.plans)

    @property
    def built(self) -> tuple[str, ...]:
        """Budgets whose plan was built from this analysis and measured on the engine, large ones first."""
        return tuple(found.name for found in self.verified)

    @property
    def smallest_built(self) -> str:
        """The budget of the smallest model that was built from this analysis.

        Raises:
            InputError: none was; says how to.
        """
        if not self.built:
            msg = (
                f"{self.folder} has no plan that was built and measured; run "
                f"'qplan emit --run {self.folder} --budget {self.first_feasible('int4', 'int8', 'fp16')}' first"
            )
            raise InputError(msg)
        return self.built[-1]

    @cached_property
    def fixed(self) -> FixedBytes:
        """Bytes that ship whatever the plan: exact after the first emit, an estimate before."""
        return run_fixed_bytes(self.home, self.model)

    @cached_property
    def verified(self) -> tuple[VerifiedPlan, ...]:
        """Plans of this analysis that were built and measured as they are, large ones first.

        Folders that another qplan or another analysis left are skipped, as in `qplan frontier`.
        """
        from qplan.choosing.measured import plans_of  # noqa: PLC0415 - scipy

        return tuple(sorted(plans_of(self.home, self.table.table), key=lambda found: -found.plan.files.total))

    def plan(self, name: str | Path = "int8") -> PlanView:
        """Read a plan of this run.

        Args:
            name: a budget of this run, or a ``plan.json`` or the folder that holds one; bytes and losses of an edited
                file are counted again.

        Raises:
            InputError: no such plan, or one that does not fit the model; says which there are.
            StaleArtifactError: it was made from other losses.
        """
        from qplan.choosing.planned import planned_on  # noqa: PLC0415 - scipy
        from qplan.run.plans import find_plan  # noqa: PLC0415 - for this call alone

        found = find_plan(str(name), self.home)
        planned = planned_on(found, self.home, self.table.table)
        plan = planned.recounted()
        inside = found.path.resolve().parent
        label = inside.name if inside.parent == self.folder.resolve() else found.path.stem
        record = next((v for v in self.verified if v.name == label and v.plan == plan), None)
        verification = None if record is None else record.verification
        return PlanView(plan, label, self.home, planned.table, verification, found.path)

    def solve(
        self,
        budget: str | int | Sequence[str] | None = "int8",
        *,
        pins: Mapping[str, str | QuantFormat] | None = None,
        min_bits: Mapping[str, int] | None = None,
        logits_bits: int = Rules.logits_bits,
        groups: Sequence[str] = (),
        fused: bool = Rules.fused,
        metric: str = Rules.metric,
        memory: str | None = None,
        objective: str = PlanRequest.objective,
        max_kl: float | None = None,
        max_ram: str | None = None,
        max_decode_ms: float | None = None,
        max_prefill_ms: float | None = None,
        target: str = DEFAULT_TARGET,
        parity: str = Rules.parity,
        dynamic_option: DynamicOption | None = None,
        name: str | None = None,
    ) -> PlanView:
        """Solve for another plan: that of `qplan plan` with the same options, in a fraction of a second.

        `qplan emit` continues from here: it measures whole models on held-out text, repairs the plan accordingly,
        and never ships one that is worse than uniform. Its plan may therefore differ from this one in a few tensors.

        Example:
            >>> run = qplan.open_run("qplan-runs/my-model")
            >>> plan = run.solve("int4", pins={"*.0.mlp.down_proj": "int8"})
            >>> plan.diff(run.solve("4.5bpw"))

        Args:
            budget: ``int8`` or ``int4`` (what MNN's uniform export with the head at 8 bits takes), ``fp16``,
                ``4.5bpw``, ``300MB``, ``60%``, a whole number of bytes, several that all hold, or None for no limit.
            pins: format by pattern on tensor names, e.g. ``{"0.mlp.down_proj": "fp16"}``.
            min_bits: least width by such a pattern.
            logits_bits: the head and a tied embedding have at least this width, and at least the others' mean; 0 turns
                the rule off.
            groups: patterns whose tensors share a format; ``{layer}`` in a pattern makes one group per layer.
            fused: whether q, k, v and gate, up share a format.
            metric: what is summed and minimized: ``kl``, ``kl-p99``, ``top1``, ``perplexity``, ``sqnr``, ``cosine``.
            memory: MNN's setting that losses are taken under, ``low`` or ``normal``; None for the run's.
            objective: ``loss`` for the least loss, or ``smallest`` or ``fastest`` under ``max_kl``.
            max_kl: limit on the predicted KL of the whole model, nats per token.
            max_ram: limit on the RAM of the weights after loading, e.g. ``300MB``.
            max_decode_ms: limit on the time of a decoded token; needs `qplan profile`.
            max_prefill_ms: the same for the profile's prompt.
            target: hardware that the model runs on: which formats are legal there, and what they take in RAM.
            parity: whether ``int8`` means no more of files, RAM, decode and prefill time than the uniform export takes
                (``all``), or no larger ``files``.
            dynamic_option: MNN's setting for int8 activations, 0 or 2; None for the one under which less is lost.
            name: a name to show; made from the budget if None.

        Raises:
            InputError: a budget, pattern, format or metric that is not understood; says what there is.
            InfeasibleError: no plan fits; names the nearest value.
        """
        from qplan.choosing.retarget import retarget_table  # noqa: PLC0415 - scipy
        from qplan.explore import solving  # noqa: PLC0415 - scipy
        from qplan.jobs.checks import check_option, check_profiled  # noqa: PLC0415 - scipy
        from qplan.jobs.options import PlanOptions  # noqa: PLC0415 - scipy
        from qplan.jobs.plan import Ground, solve_plan  # noqa: PLC0415 - scipy

        rules = Rules.parse(
            pins=pins,
            min_bits=min_bits,
            logits_bits=logits_bits,
            groups=groups,
            fused=fused,
            metric=metric,
            target=target,
            parity=parity,
        )
        wanted = PlanRequest(
            budgets=solving.budgets_of(budget),
            objective=parse_objective(objective),
            max_kl=max_kl,
            max_decode_ms=max_decode_ms,
            max_prefill_ms=max_prefill_ms,
            max_ram=None if max_ram is None else Size.parse(max_ram, "max_ram"),
            rules=rules,
        )
        options = PlanOptions(wanted=wanted, dynamic_option=dynamic_option)
        own = retarget_table(self.table.table, options.target)
        table = under(own, memory)
        check_option(dynamic_option, table, self.home)
        check_profiled(wanted, self.home)
        ground = Ground.of(options, self.home, table)
        plan, found = solve_plan(options, ground, _unheard)
        # the table is this run's, whatever memory setting it is seen under
        plan = replace(plan, sensitivity_sha256=own.sha256)
        return PlanView(plan, name or solving.name_of(wanted, memory), self.home, found.table)

    def first_feasible(self, *budgets: str | int, **rules: Any) -> str | int:  # noqa: ANN401 - those of `solve`
        """The first of some budgets that has a plan: one to look at in any run, whatever its formats.

        Args:
            budgets: as for `solve`, in the order of preference.
            rules: keyword arguments of `solve`.

        Raises:
            InputError: a budget that is not understood.
            InfeasibleError: none has a plan; says what would.

        Example:
            >>> run.first_feasible("int4", "int8", "fp16")
            'int4'
        """
        refused: InfeasibleError | None = None
        for budget in budgets:
            try:
                self.solve(budget, **rules)
            except InfeasibleError as error:
                refused = refused or error
            else:
                return budget
        raise refused or InputError("give at least one budget, e.g. 'int4'")

    @property
    def frontier(self) -> pd.DataFrame:
        """The best plan at every size, uniform models, and what the engine measured; bytes ascending.

        From `qplan frontier`, or solved now in seconds; see `qplan.explore.frames.frontier_frame` for columns.
        """
        frontier, measured = self.swept
        return frontier_frame(frontier, measured, self.model.planned)

    @cached_property
    def swept(self) -> tuple[Frontier, tuple[MeasuredModel, ...]]:
        """The best plans at all sizes, and what the engine measured; `frontier` is its frame."""
        from qplan.choosing.measured import measured_models  # noqa: PLC0415 - scipy
        from qplan.choosing.parity import promised  # noqa: PLC0415 - scipy
        from qplan.planner.frontier import frontier, sweep_of  # noqa: PLC0415 - scipy

        table = self.table.table
        limits = promised(Rules(), table, self.home)
        found = find_frontier([self.home.frontier], sweep_of(table, Rules(), self.fixed, promised=limits))
        return found or frontier(table, self.fixed, promised=limits), measured_models(self.home, table)

    @property
    def verification(self) -> pd.DataFrame:
        """What the engine measured, per budget, model and setting, against what was predicted.

        See `qplan.explore.frames.verification_frame` for columns; empty before the first `qplan emit`.
        """
        return verification_frame(self.verified)

    @property
    def checks(self) -> pd.DataFrame:
        """Promises that were held against the engine, one row each: ``budget, check, passed, detail``."""
        return checks_frame(self.verified)
