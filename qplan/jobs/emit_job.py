"""The inputs of an emit, and its planning half: the plan to build, before the engine measures anything."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.choosing.activations import (
    BlockGain,
    measure_gain,
    with_measured_option,
    with_note_on_losses,
    with_requested_option,
    without_block_scales,
)
from qplan.choosing.budget_plan import within_uniform
from qplan.choosing.cache import CacheMenu, choose_cache
from qplan.choosing.choose import with_price_of_nearest
from qplan.choosing.context import PlanningContext
from qplan.choosing.halves import Halves
from qplan.choosing.loss_limits import choose_requested
from qplan.choosing.planned import PlannedOn
from qplan.choosing.request import PlanRequest
from qplan.choosing.retarget import computable, retarget_rules
from qplan.choosing.sizes import fixed_bytes
from qplan.cost.emit import ACTIVATIONS, EXPORTING, KEEPING
from qplan.cost.file_bytes import FixedBytes
from qplan.cost.kv_cache import KvMode
from qplan.folding.analyzed import AnalyzedModel
from qplan.formats import applies, garbled
from qplan.jobs.cache import cache_notes
from qplan.jobs.options import EmitOptions
from qplan.jobs.skeletons import run_skeleton
from qplan.jobs.stages import Stages
from qplan.mnn.build.skeleton import Skeleton
from qplan.model.load import LoadedModel
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.quantize.rounder import Rounder
from qplan.run.folder import RunFolder
from qplan.run.kv_cache import KvLoss
from qplan.run.plan import Plan
from qplan.run.plan_folder import PLAN_FILE, PlanFolder
from qplan.run.table import SensitivityTable
from qplan.sensitivity.kept_logits import KeptLogits, kept_logits
from qplan.sensitivity.metrics import TokenStats
from qplan.settings import Say


@dataclass(frozen=True, kw_only=True)
class EmitJob:
    """Inputs that every step of an emit needs."""

    options: EmitOptions
    run: RunFolder
    table: SensitivityTable
    model: AnalyzedModel
    skeleton: Skeleton
    rounder: Rounder
    heldout: NDArray[np.int64]
    """Tokens that plans are measured on, int64 ``[rows, seq_len]``."""
    say: Say
    stages: Stages
    """Tells how far the emit is."""
    given: PlannedOn | None = None
    """The plan given with ``--plan``, for the engine that it was made for; None if one is to be made."""
    open: ExitStack | None = None
    """Closes what `kept` keeps on disk; None to keep nothing."""
    jobs: int = 1
    """Tensors to round at a time."""
    caches: CacheMenu | None = None
    """The KV caches that the plan may have; None without a context."""
    measure_cache: Callable[[KvMode], KvLoss] | None = None
    """Measures what one loses; None where nothing is built."""

    @property
    def engine(self) -> str | None:
        """Version of the engine that the plan records; None for the installed one."""
        return None if self.options.engine is None else str(self.options.target.engine)

    @cached_property
    def folder(self) -> Path:
        """The folder to write to: a given plan's own folder in the run, or one named after its file or the budget.

        If a given plan was made for another engine, its folder is left alone, and this build gets a new one.
        """
        given = self.given
        if given is None:
            return self.run.budget_for(self.options.wanted.label, self.engine)
        inside = given.path.resolve().parent
        own = given.path.name == PLAN_FILE and inside.parent == self.run.folder.resolve()
        if own and given.plan.engine == self.engine:
            return inside
        label = inside.name if own else given.path.stem
        return self.run.budget_for(label.removesuffix(f"-mnn-{given.plan.engine}"), self.engine)

    @property
    def plan_path(self) -> Path:
        """Path of the plan in `folder`."""
        return PlanFolder(self.folder).plan

    @property
    def exported(self) -> LoadedModel:
        """The model that llmexport can convert. It knows no embedding scale, so with one it gets the original model."""
        return self.model.loaded if self.model.loaded.embedding_scale is None else self.model.original

    @cached_property
    def uniform_skeleton(self) -> Skeleton:
        """The graph that uniform models are built from: the original's, since MNN's exporter does not fold."""
        original = self.model.original
        if original is self.model.loaded:
            return self.skeleton
        options = self.options
        return run_skeleton(
            self.run,
            original,
            options.llmexport,
            self.stages.teller(EXPORTING),
            c4=options.target.c4,
            unfolded=True,
            max_memory_bytes=options.max_memory_bytes,
        )

    @cached_property
    def kept(self) -> KeptLogits | None:
        """What the model in FP32 says of `heldout`, computed when it is first asked for."""
        if self.open is None:
            return None
        line = f"FP32 reference on {self.heldout.size} held-out tokens, to measure plans with"
        progress = self.stages.visit(KEEPING, line)
        return self.open.enter_context(kept_logits(self.model.loaded, self.heldout, progress))

    @cached_property
    def _known(self) -> dict[object, TokenStats]:
        """Whole models that were measured already."""
        return {}

    @cached_property
    def _halves(self) -> Halves:
        """Whether products of bfloat16 suffice to compare whole models."""
        return Halves()

    def gain(self, plan: Plan) -> BlockGain:
        """What ``dynamic_option`` 2 gains in torch."""
        half = self._halves.suffice(self.model.loaded, self.table, plan.formats, self.kept)
        progress = self.stages.visit(ACTIVATIONS, "joint loss with activation scales per token and per block")
        return measure_gain(plan, self.rounder, self.heldout, self.kept, progress, half=half)

    def context(self, table: SensitivityTable, fixed: FixedBytes, nearest: LoadedModel) -> PlanningContext:
        """What plans are made from and measured with.

        Args:
            table: losses of single tensors.
            fixed: bytes that every plan ships.
            nearest: the model that uniform models and plans of llmexport are made of.
        """
        return PlanningContext(
            table,
            fixed,
            self.rounder,
            Rounder(nearest),
            self.heldout,
            self.say,
            kept=self.kept,
            known=self._known,
            halves=self._halves,
            jobs=self.jobs,
            visit=self.stages.visit,
        )


_ABOUT_CONTEXT = ("context-limited", "setting-beyond-context", "setting-unmeasured")
"""Notes of a table that a reader of the plan must know too."""


def planned(job: EmitJob, given: Plan | None) -> tuple[Plan, BlockGain | None]:
    """The plan to build, and the gain of ``dynamic_option`` 2 if the built model's speed is to decide on that."""
    options, table, fixed = job.options, job.table, fixed_bytes(job.skeleton)
    plan = given or _chosen(job, fixed)
    plan = replace(plan, sensitivity_sha256=table.sha256, engine=job.engine)
    plan = plan.noted(*(known for known in table.notes if known.code in _ABOUT_CONTEXT and known not in plan.notes))
    plan = with_price_of_nearest(plan, job.context(table, fixed, job.exported))
    if given is not None and options.dynamic_option is None:
        options = replace(options, dynamic_option=2 if given.dynamic_option == 2 else 0)
    plan, gain = _first_option(plan, options, job)
    return (plan, gain) if gain else (with_note_on_losses(plan, table.conditions.dynamic_option), None)


def _chosen(job: EmitJob, fixed: FixedBytes) -> Plan:
    """The best plan in formats that the engine computes, confirmed on whole models."""
    options = job.options
    table = job.table if options.dynamic_option != 2 else computable(job.table)
    context = job.context(table, fixed, job.model.original)

    def choose(rules: Rules) -> Plan:
        wanted = replace(options.wanted, rules=retarget_rules(rules, options.target))
        if job.caches is None:
            return choose_requested(context, wanted, job.run, evaluations=options.evaluations)
        cache = choose_cache(job.caches, wanted, partial(_predicted, job, table, fixed), job.measure_cache, job.say)
        wanted = replace(wanted, cache=cache)
        plan = choose_requested(context, wanted, job.run, evaluations=options.evaluations)
        return replace(plan, kv=cache).noted(*cache_notes(cache))

    return within_uniform(choose, options.wanted.rules, fixed, fixed_bytes(job.uniform_skeleton), say=job.say)


def _predicted(job: EmitJob, table: SensitivityTable, fixed: FixedBytes, wanted: PlanRequest) -> float:
    """Predicted loss of the best plan for a request, before whole models are measured."""
    limits: list[Ceiling | ResourceLimit] = [*wanted.limits(table, job.run), *wanted.loss_ceilings(table)]
    minimize = wanted.minimize(table, job.run)
    plan = make_plan(table, wanted.budgets, fixed, rules=wanted.rules, ceilings=limits, minimize=minimize)
    return plan.predicted_nats


def _first_option(plan: Plan, options: EmitOptions, job: EmitJob) -> tuple[Plan, BlockGain | None]:
    """The plan with its ``dynamic_option``, and the gain of option 2 if the built model's speed is to decide."""
    if options.dynamic_option == 0 or not applies(plan.memory, plan.formats):
        return replace(plan, dynamic_option=options.dynamic_option or 0), None
    names = garbled(plan.formats)
    if names:
        return without_block_scales(plan, names), None
    gain = job.gain(plan)
    if options.dynamic_option == 2:
        return with_requested_option(plan, gain), None
    if gain.pays and options.build:
        return plan, gain
    return with_measured_option(plan, gain, None), None
