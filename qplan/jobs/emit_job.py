"""The inputs of an emit, and its planning half: the plan to build, before the engine measures anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.choosing.activations import (
    BlockGain,
    measure_gain,
    with_derived_option,
    with_measured_option,
    with_requested_option,
    without_block_scales,
)
from qplan.choosing.budget_plan import within_uniform
from qplan.choosing.cache import CacheMenu, choose_cache
from qplan.choosing.choose import with_price_of_nearest
from qplan.choosing.context import PlanningContext
from qplan.choosing.halves import Halves
from qplan.choosing.loss_limits import choose_requested
from qplan.choosing.option import (
    Setting,
    as_shipped,
    best_setting,
    predicted_loss,
    setting,
    with_note_on_losses,
)
from qplan.choosing.planned import PlannedOn
from qplan.choosing.request import PlanRequest
from qplan.choosing.retarget import retarget_rules
from qplan.choosing.sizes import fixed_bytes
from qplan.choosing.solving import with_notes_of
from qplan.cost.emit import ACTIVATIONS, EXPORTING, KEEPING
from qplan.cost.file_bytes import FixedBytes
from qplan.cost.kv_cache import KvMode
from qplan.cost.target import DEFAULT_TARGET, Target
from qplan.folding.analyzed import AnalyzedModel
from qplan.formats import applies, garbled
from qplan.jobs.cache import cache_notes
from qplan.jobs.emitted import folder_of
from qplan.jobs.options import EmitOptions
from qplan.jobs.skeletons import run_skeleton
from qplan.jobs.stages import Stages
from qplan.mnn.build.skeleton import Skeleton
from qplan.model.load import LoadedModel
from qplan.planner.rules import Rules
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import StoredCache
from qplan.run.folder import RunFolder
from qplan.run.kv_cache import KvLoss
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.table import SensitivityTable
from qplan.sensitivity.kept_logits import KeptLogits, kept_logits
from qplan.sensitivity.metrics import TokenStats
from qplan.settings import DYNAMIC_OPTIONS, DynamicOption, Say, without_half
from qplan.tuning.schedule import Schedule
from qplan.uniform import HQQ


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
    schedule: Schedule | None = None
    """Of training the plan's scales; None to leave them as they are."""
    caches: CacheMenu | None = None
    """The KV caches that the plan may have; None without a context."""
    begun_s: float = field(default_factory=time.monotonic)
    """When the emit began, by `time.monotonic`."""
    measure_cache: Callable[[KvMode], KvLoss] | None = None
    """Measures what one loses; None where nothing is built."""

    @property
    def engine(self) -> str | None:
        """Version of the engine that the plan records; None for the installed one."""
        return None if self.options.engine is None else str(self.options.target.engine)

    @property
    def target(self) -> Target:
        """Where the plan is to run."""
        return self.options.wanted.rules.target if self.given is None else self.given.rules.target

    @cached_property
    def folder(self) -> Path:
        """The folder to write to."""
        return folder_of(self.given, self.options.wanted.label, self.run, self.engine)

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
    def hqq(self) -> Rounder:
        """Rounds uniform models as MNN's exporter does with ``--hqq``, once."""
        original = self.model.original
        return Rounder(original, HQQ, cache=StoredCache.of(self.run, {"model": original.card.sha256, "rounding": HQQ}))

    @cached_property
    def kept(self) -> KeptLogits | None:
        """What the model in FP32 says of `heldout`, computed when it is first asked for."""
        if self.open is None:
            return None
        line = f"FP32 reference on {self.heldout.size:,} held-out tokens, to measure plans with"
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
        arithmetic = without_half(self.target.arithmetic)
        return measure_gain(plan, self.rounder, self.heldout, self.kept, progress, arithmetic=arithmetic, half=half)

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
            hqq=self.hqq if nearest is self.model.original else None,
            rivals=max(PlanningContext.rivals, self.options.rivals),
            jobs=self.jobs,
            visit=self.stages.visit,
        )


def planned(job: EmitJob, given: Plan | None) -> tuple[Plan, BlockGain | None]:
    """The plan to build, and the gain of ``dynamic_option`` 2 if the built model's speed is to decide on that."""
    options, table, fixed = job.options, job.table, fixed_bytes(job.skeleton, job.table.model)
    plan, gain = _as_given(job, given) if given is not None else _chosen(job, fixed)
    plan = replace(plan, sensitivity_sha256=table.sha256, engine=job.engine)
    rules = job.options.wanted.rules if job.given is None else job.given.rules
    plan = as_shipped(with_notes_of(plan, table, rules), table)
    plan = with_price_of_nearest(plan, job.context(Rules.of(plan).seen(table), fixed, job.exported))
    decides = gain is not None and options.build and plan.target == DEFAULT_TARGET
    return (plan, gain) if decides else (with_note_on_losses(plan, table), None)


def _as_given(job: EmitJob, given: Plan) -> tuple[Plan, BlockGain | None]:
    """A plan that the user gave, with its own option unless another is asked for."""
    asked = job.options.dynamic_option
    return _with_option(given, given.dynamic_option if asked is None else asked, job), None


def _chosen(job: EmitJob, fixed: FixedBytes) -> tuple[Plan, BlockGain | None]:
    """The best plan in formats that the engine computes, confirmed on whole models."""
    asked = job.options.dynamic_option
    found = best_setting(job.table, _wanted(job, job.options.wanted.rules), job.run, fixed, asked)
    if found.option:
        job.say("plans lose less with a scale for each block of the activations (dynamic_option 2): planned with it")
    plan = _chosen_under(job, found, fixed)
    if asked is not None:
        return _with_option(plan, asked, job), None
    if not applies(plan.memory, plan.formats) or job.target.arithmetic == "float":
        return plan, None
    names = garbled(plan.formats)
    if names:
        return without_block_scales(plan, names), None
    gain = job.gain(plan)
    if found.option and not gain.pays:  # whole models do not bear it out
        plan = _chosen_under(job, setting(job.table, found.wanted, 0), fixed)
    if not gain.pays or not job.options.build or job.target.name != DEFAULT_TARGET:
        return _decided(plan, gain, job), None
    return plan, gain


def _decided(plan: Plan, gain: BlockGain, job: EmitJob) -> Plan:
    """The plan with the option that its gain speaks for, where no model of it is timed."""
    if job.target.name == DEFAULT_TARGET:
        return with_measured_option(plan, gain, None)
    times = [
        sum(
            job.target.scaling(option).decode_bytes(job.table.model.tensor(name), fmt, plan.memory)
            for name, fmt in plan.formats.items()
        )
        for option in DYNAMIC_OPTIONS
    ]
    return with_derived_option(plan, gain, times[1] / times[0])


def _wanted(job: EmitJob, rules: Rules) -> PlanRequest:
    return replace(job.options.wanted, rules=retarget_rules(rules, job.options.target))


def _chosen_under(job: EmitJob, given: Setting, fixed: FixedBytes) -> Plan:
    """The best plan under one ``dynamic_option``."""
    context = job.context(given.table, fixed, job.model.original)

    def choose(rules: Rules) -> Plan:
        wanted = replace(given.wanted, rules=rules)
        if job.caches is None:
            return choose_requested(context, wanted, job.run, evaluations=job.options.evaluations)
        predicted = partial(predicted_loss, given.table, job.run, fixed)
        cache = choose_cache(job.caches, wanted, predicted, job.measure_cache, job.say)
        wanted = replace(wanted, cache=cache)
        plan = choose_requested(context, wanted, job.run, evaluations=job.options.evaluations)
        return replace(plan, kv=cache).noted(*cache_notes(cache))

    unfolded = fixed_bytes(job.uniform_skeleton, job.table.model)
    return within_uniform(choose, given.wanted.rules, fixed, unfolded, say=job.say)


def _with_option(plan: Plan, option: DynamicOption, job: EmitJob) -> Plan:
    """The plan with an option that was asked for."""
    if option == 0 or not applies(plan.memory, plan.formats):
        return replace(plan, dynamic_option=option)
    names = garbled(plan.formats)
    return without_block_scales(plan, names) if names else with_requested_option(plan, job.gain(plan))
