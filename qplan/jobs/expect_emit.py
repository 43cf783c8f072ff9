"""What an emit is going to take, before anything is loaded."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qplan.choosing.context import PlanningContext
from qplan.choosing.planned import PlannedOn
from qplan.choosing.repair import most_models
from qplan.choosing.sizes import run_fixed_bytes
from qplan.cost.emit import TRAINING, TUNING, EmitAsked, EmitCost
from qplan.cost.engine import EngineCost
from qplan.cost.expected import Expected, apart
from qplan.cost.free import free_memory
from qplan.cost.kv_cache import KvMode
from qplan.cost.shape import Shape
from qplan.cost.training import FIT_ROWS, MOST_PASSES, enough_to_train_layers
from qplan.cost.work import REFERENCE, Machine
from qplan.errors import InputError
from qplan.folding.analyzed import folded_copy, weights_memory
from qplan.formats import FP16
from qplan.jobs.cache import cache_menu, context_of
from qplan.jobs.options import EmitOptions
from qplan.jobs.outlook import Outlook, on_this_machine
from qplan.mnn.build.exporter_source import find_exporter
from qplan.mnn.build.left_out import kept_of, whole_bytes
from qplan.model.door import check_folder
from qplan.model.outline import shape_of
from qplan.model.source import fetch
from qplan.planner.metric import Metric
from qplan.roundings import needs_tokens
from qplan.run.baselines import baseline_path, is_measured
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import fold_of
from qplan.run.folder import RunFolder
from qplan.run.frontier import POINTS
from qplan.run.skeleton_record import SkeletonRecord
from qplan.run.table import SensitivityTable
from qplan.settings import MEMORIES
from qplan.tuning.kept import JUDGED, schedule_of
from qplan.tuning.schedule import STEPS as MOST_STEPS
from qplan.tuning.schedule import STEPS_OF_FULL, Schedule, epochs_of_full
from qplan.uniform import COMPARED
from qplan.verify.bench import GATE_TOKENS
from qplan.verify.cache import STEPS, most_tokens
from qplan.verify.measure import Trial
from qplan.verify.prove import baseline_inputs

REMEDIES = ("--max-memory, which reads weights from the disk when they are used",)
LIMITED_REMEDIES = ("use --no-build, which leaves the engine out",)
"""What lets an emit do with less memory; and with a limit that is too low."""

_USUAL_BITS = 8
"""Of the plan's weights, where no budget says."""


@dataclass(frozen=True)
class Emission:
    """What an emit is about."""

    options: EmitOptions
    run: RunFolder
    table: SensitivityTable
    """As the engine reads its formats."""
    calibration: CalibrationSet
    given: PlannedOn | None
    """The plan given with ``--plan``."""
    planning_rows: int
    """Sequences that plans are measured on."""
    judged_rows: int
    """Sequences that built models are measured on."""
    decode_rows: int
    """Of these, those that go through token by token."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Of all models that are loaded: the analyzed one, and the one before folding."""
        record = fold_of(self.run, self.table.model)
        if record is None:
            return (fetch(self.table.model.source),)
        return self.run.folded, fetch(record.original)

    @property
    def streamed(self) -> bool:
        """Whether weights stay on the disk, as `qplan.folding.analyzed.load_analyzed` decides."""
        most = weights_memory(self.options.max_memory_bytes)
        return 4 * self.table.model.parameters * len(self.folders) > most

    @cached_property
    def held(self) -> int:
        """Models whose weights stay in memory: that before folding stays on the disk where both leave too little."""
        models = len(self.folders)
        if self.streamed or models == 1:
            return 0 if self.streamed else models
        shape = shape_of(self.table.model, self.folders)
        cost = EmitCost(shape, self._asked(shape, self._schedule, models), self.engine(shape), REFERENCE)
        return models if max(stage.memory_bytes for stage in cost.stages()) <= self._memory else models - 1

    @property
    def _memory(self) -> float:
        return min(free_memory(), self.options.max_memory_bytes or math.inf)

    @property
    def bits(self) -> float:
        """Mean bits of the plan's weights, as far as that is known before."""
        if self.given is not None:
            return self.given.plan.mean_bits
        card, fixed = self.table.model, run_fixed_bytes(self.run, self.table.model, c4=self.options.target.c4)
        weights = sum(spec.weights for spec in card.tensors)
        most = [budget.resolve(card, fixed).limit_bytes for budget in self.options.wanted.budgets]
        others = fixed.total + (0 if card.embedding is None else card.embedding.bytes_in(FP16))
        return min(16.0, 8 * max(0, min(most) - others) / weights) if most else _USUAL_BITS

    @property
    def cache_tokens(self) -> int:
        """Tokens that KV caches are measured on; 0 for none."""
        tokens = context_of(self.options.wanted, None if self.given is None else self.given.plan)
        judged = self.judged_rows * self.calibration.seq_len
        return 0 if tokens is None else most_tokens(min(tokens, judged), self.table.model.vocabulary)

    @property
    def caches(self) -> int:
        """Ways to store the KV cache whose losses may have to be measured."""
        wanted = self.options.wanted
        if self.given is not None or wanted.kv is KvMode.FLOAT:
            return 0
        menu = cache_menu(wanted, self.table, self.options.target.engine)
        if menu is None or (wanted.kv is None and wanted.max_ram is None):
            return 0
        return 1 if wanted.kv is not None else len(menu.modes) - 1

    @property
    def exports(self) -> int:
        """Graphs that the run does not keep yet."""
        exporter, record = find_exporter(self.options.llmexport).version, fold_of(self.run, self.table.model)
        wanted = {False: self.table.model.sha256}
        if record is not None and (self.options.build or self.given is None):
            wanted[True] = record.original_sha256
        missing = 0
        for unfolded, sha256 in wanted.items():
            folder, path = self.run.skeleton_for(c4=self.options.target.c4, unfolded=unfolded)
            kept = SkeletonRecord.kept(path) if folder.is_dir() else None
            missing += kept is None or (kept.model, kept.exporter) != (sha256, exporter)
        return missing

    @property
    def uniform(self) -> tuple[int, ...]:
        """Widths of the uniform models that the run has no measurements of on these tokens."""
        options, calibration = self.options, self.calibration
        if options.text is not None:  # whose tokens are not known yet
            return tuple(COMPARED.values())
        record = fold_of(self.run, self.table.model)
        counts = (options.threads, self.decode_rows, Trial.prompt_tokens, Trial.decode_tokens, Trial.repeats)
        inputs = baseline_inputs(
            self.table.model.sha256 if record is None else record.original_sha256,
            calibration.heldout_sha256,
            find_exporter(options.llmexport).version,
            Trial.settings_of((self.judged_rows, calibration.seq_len), counts),
        )
        folder = self.run.baselines_for(None if options.engine is None else str(options.target.engine))
        known = {name for name in COMPARED if is_measured(baseline_path(folder, name), inputs)}
        return tuple(bits for name, bits in COMPARED.items() if name not in known)

    @property
    def evaluations(self) -> int:
        """Whole models that a repair measures."""
        wanted, asked = self.options.wanted, self.options.evaluations
        table = self.table
        if self.given is not None or asked == 0 or self.planning_rows < 2 or wanted.rules.metric is not Metric.kl:  # noqa: PLR2004
            return 0
        if wanted.objective != "loss":
            return 0
        half = -(-self.planning_rows // 2) * self.calibration.seq_len
        return most_models(table.conditions.samples * table.conditions.seq_len, half) if asked is None else asked

    @property
    def tunes(self) -> bool:
        """Whether integers are fitted to the plan."""
        return self.options.tunes(self.table.conditions.rounding)

    @property
    def training(self) -> Schedule | None:
        """When scales are trained on what; None if they are not."""
        return None if self.untrained else self._schedule

    @property
    def _schedule(self) -> Schedule | None:
        """What training would be, if it is asked for."""
        if not self.options.trains(self.table.conditions.rounding):
            return None
        if self.options.tune == "full":
            return schedule_of(self.calibration, STEPS_OF_FULL, epochs=epochs_of_full(self.calibration.fit.size))
        whole, limited = schedule_of(self.calibration, MOST_STEPS), self.options.tune == "auto"
        return whole.within(MOST_PASSES, self.calibration.tokens.size) if limited else whole

    @cached_property
    def untrained(self) -> str:
        """Why scales that could be trained are left alone; empty if they are trained, or were not to be.

        Raises:
            InputError: they cannot be trained, and it was asked for.
        """
        schedule = self._schedule
        if schedule is None:
            return ""
        why, remedy = "", "leave it out"
        if self.streamed:
            why, remedy = (
                "the model's weights stay on the disk, and training reads them at every step",
                ("raise --max-memory, or leave it out"),
            )
        elif not (schedule.is_worth_it if self.options.tune == "auto" else schedule.is_possible):
            limits = f" and {MOST_PASSES} passes" if self.options.tune == "auto" else ""
            rows = f"{len(self.calibration.fit)} windows of calibration text to train on"
            why = f"{rows}, {len(schedule.held_out)} others to judge by{limits} allow {schedule.steps} steps, too few"
            remedy = "analyze with more --samples and --fit-tokens, or leave it out"
        elif not len(self.calibration.tokens[JUDGED]):
            why = "with 1 calibration window none is left to decide whether they ship"
            remedy = "analyze with more --samples, or leave it out"
        elif self.options.tune == "full" and not enough_to_train_layers(-(-len(self.calibration.fit) // FIT_ROWS)):
            least = next(count for count in itertools.count() if enough_to_train_layers(count))
            why = (
                f"layers are trained on {FIT_ROWS * (least - 1) + 1} windows of calibration text at least, "
                f"and there are {len(self.calibration.fit)}"
            )
            remedy = "analyze with more --fit-tokens, or use --tune scales"
        elif self.options.tune == "auto":  # asked for, it is refused by the outlook
            why = self._lacking(schedule)
        if why and self.options.tune != "auto":
            msg = f"--tune {self.options.tune}: {why}; {remedy}"
            raise InputError(msg)
        return f"scales are not trained: {why}" if why else ""

    def _lacking(self, schedule: Schedule) -> str:
        """That training needs more memory than there is; empty if it does not."""
        shape = shape_of(self.table.model, self.folders)
        cost = EmitCost(shape, self._asked(shape, schedule, self.held), self.engine(shape), REFERENCE)
        stage = next(stage for stage in cost.stages() if stage.name.startswith(TRAINING))
        limit = self._memory  # what is free changes
        if stage.memory_bytes <= limit:
            return ""
        need, have = apart(stage.memory_bytes, limit)
        return f"that needs about {need} of memory, and there are {have}"

    def asked(self, shape: Shape) -> EmitAsked:
        """What the work depends on."""
        return self._asked(shape, self.training, self.held)

    def _asked(self, shape: Shape, training: Schedule | None, held: int) -> EmitAsked:
        options, table, rounding = self.options, self.table, self.table.conditions.rounding
        seq_len = self.calibration.seq_len
        kept = kept_of(self.folders[0])
        return EmitAsked(
            judged=self.judged_rows * seq_len,
            planning=self.planning_rows * seq_len,
            seq_len=seq_len,
            checkpoint_bytes=shape.checkpoint_bytes,
            models=len(self.folders),
            held=held,
            fits=needs_tokens(rounding),
            chosen=rounding == "auto",
            solves=self.given is None,
            choices=sum(len(table.formats_of(spec.name)) for spec in table.model.tensors),
            memories=len(table.memories),
            evaluations=self.evaluations,
            weighs_activations=table.goal == "low" and options.dynamic_option != 0,
            exports=self.exports,
            export_bytes=whole_bytes(self.folders[0]) if kept is None else kept.peak_bytes,
            rivals=options.rivals if self.given is None else min(options.rivals, len(self.given.plan.rivals)),
            compared=max(PlanningContext.rivals, options.rivals),
            budgets=POINTS,
            build=options.build,
            cache_tokens=self.cache_tokens,
            cache_steps=STEPS,
            caches=self.caches,
            fitted=self.calibration.fit.size if self.tunes else 0,
            layers=options.tune == "full",
            trained=None if training is None else training.tokens,
            steps=0 if training is None else training.steps,
            weighed=self.calibration.tokens.size,
            processors=len(options.prove),
            precision=options.wanted.rules.target.precision if self.given is None else self.given.plan.precision,
        )

    def engine(self, shape: Shape, most_bytes: float = math.inf) -> EngineCost:
        """What the engine does, within a limit on its memory."""
        return EngineCost(
            shape=shape,
            bits=self.bits,
            uniform=self.uniform,
            memories=MEMORIES,
            seq_len=self.calibration.seq_len,
            gate_tokens=GATE_TOKENS,
            threads=self.options.threads,
            decode_rows=self.decode_rows,
            prompt_tokens=Trial.prompt_tokens,
            decode_tokens=Trial.decode_tokens,
            repeats=Trial.repeats,
            enough_s=Trial.enough_s,
            most_bytes=most_bytes,
        )


def expect_emit(emission: Emission, *, measure: bool = False) -> Outlook:
    """What an emit takes.

    Args:
        emission: what it is about.
        measure: measure this machine, which takes a few seconds, even where there is little to do.

    Raises:
        InputError: the model is not there any more, or not whole.
        DamagedArtifactError: its folded copy is not whole.
    """
    if fold_of(emission.run, emission.table.model) is not None:
        with folded_copy(emission.run):
            check_folder(emission.run.folded)
    check_folder(emission.folders[-1])
    shape = shape_of(emission.table.model, emission.folders)
    asked, limit = emission.asked(shape), emission.options.max_memory_bytes
    own_bytes = EmitCost(shape, asked, emission.engine(shape), REFERENCE).own_bytes
    limited = LIMITED_REMEDIES if emission.options.build else ()
    remedies = REMEDIES if limit is None else limited

    def outlook(machine: Machine) -> Outlook:
        most = math.inf if limit is None else float(min(limit, machine.memory_bytes))
        engine = emission.engine(shape, most - own_bytes)
        expected = Expected(EmitCost(shape, asked, engine, machine, most).stages())
        peak = max(expected.stages, key=lambda stage: stage.memory_bytes)
        less = "scales" if emission.options.tune == "full" else "off"
        more = (f"use --tune {less}",) if peak.name == TUNING else ()
        more = ("use --tune sequential",) if peak.name.startswith(TRAINING) else more
        return Outlook(expected, machine, limit, remedies + more)

    return on_this_machine(outlook, emission.run, measure=measure)
