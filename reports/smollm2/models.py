"""The models that are compared: MNN's uniform exports, the official recipe by llmexport itself, qplan's plans."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qplan.artifact import sha256_files
from qplan.choosing.request import PlanRequest
from qplan.formats import QuantFormat
from qplan.jobs.emit import run_emit
from qplan.jobs.options import EmitOptions
from qplan.mnn.build.exporter import export
from qplan.mnn.build.exporter_source import ExportOptions
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.engine import checked_folder
from qplan.mnn.runtime import RuntimeConfig
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.rounding.rounder import Rounder
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.provenance import Provenance
from qplan.settings import DynamicOption, Folding, Tune
from qplan.uniform import HEAD_BITS, HQQ, UNIFORM_BITS, UniformExport
from reports.smollm2.subject import Subject, quiet, tell

UNIFORM = ("fp16", "int8", "int4")
PROVED_TOKENS = 512
"""Of held-out calibration text, in the proof that `qplan emit` makes itself."""
OFFICIAL = UniformExport.of(QuantFormat(4, 64), HQQ)
"""The recipe of MNN's published models: ``llmexport --hqq``, 4 bits in blocks of 64; the head at 8 bits, as for all."""


@dataclass(frozen=True)
class Wanted:
    """A plan to make."""

    budget: str
    parity: str = "all"
    target: str = "cpu-x86"
    beside: str | None = None
    """Type of the GGUF file whose bytes the budget is."""
    tune: Tune = "off"
    """Whether it is fitted as a whole, which takes longest."""
    fold: Folding = "auto"
    """How the folds were found of the analysis that it is made from."""

    @property
    def name(self) -> str:
        """Of its row."""
        if self.beside is not None:
            return f"plan-{self.beside}"
        ends = ("files" if self.parity == "files" else "", "" if self.target == "cpu-x86" else self.target)
        return "-".join(filter(None, ("plan", self.budget, *ends)))


PLANS = (
    Wanted("int8", tune="sequential", fold="trained"),
    Wanted("int4", tune="sequential"),
    Wanted("int4", "files"),
)
PHONE_PLANS = (Wanted("int8", target="phone"), Wanted("int4", target="phone"))


@dataclass(frozen=True)
class Model:
    """A model folder."""

    name: str
    folder: Path
    formats: Mapping[str, QuantFormat]
    command: str
    """What makes it."""
    against: str | None = None
    """The uniform export whose limits a plan keeps to, or that another uniform one is beside."""
    dynamic_option: DynamicOption = 0
    mean_bits: float | None = None
    """Of a plan."""
    for_phones: bool = False
    beside: str | None = None
    """Type of the GGUF file whose bytes a plan has."""

    def runtime(self, threads: int) -> RuntimeConfig:
        """The settings that it ships with."""
        return RuntimeConfig.of_settings(checked_folder(self.folder).settings, threads)

    @property
    def digest(self) -> str:
        """Tells whether it is the model that was measured."""
        return sha256_files(path for path in self.folder.iterdir() if path.is_file())


def models(subject: Subject, wanted: tuple[Wanted, ...], again: tuple[str, ...]) -> Iterator[Model]:
    """Every model, made if it is not there; those named in ``again`` anew."""
    for name in again:
        shutil.rmtree(subject.work / "models" / name, ignore_errors=True)
    for name in UNIFORM:
        against = {"fp16": "int8"}.get(name)
        yield _uniform(subject, UniformExport.plain(UNIFORM_BITS[name]), against)
    yield _official(subject)
    known = {*UNIFORM, OFFICIAL.name}
    for one in wanted:
        plan = _plan(subject, one)
        made = Plan.read(PlanFolder(plan.folder.parent).plan)
        fair = [rival.name for rival in made.rivals if not rival.name.startswith(subject.leave_out)]
        best = fair[0] if fair and one in PLANS and one.parity == "all" else None
        if best is not None and best not in known:
            known.add(best)
            yield _uniform(subject, UniformExport.parse(best), one.budget)
        yield plan


def _uniform(subject: Subject, export_: UniformExport, against: str | None) -> Model:
    card, formats = subject.loaded.card, export_.formats(subject.loaded.card)
    folder = subject.work / "models" / export_.name
    if not folder.is_dir():
        tell(f"building {export_.name}")
        build_model(
            subject.skeleton,
            card.planned,
            formats,
            Rounder(subject.loaded, export_.rounding).store,
            folder,
            runtime=RuntimeConfig(),
            context=card.context,
        )
    return Model(export_.name, folder, formats, export_.command, against)


def _official(subject: Subject) -> Model:
    """What llmexport itself makes of the model."""
    folder = subject.work / "models" / OFFICIAL.name
    if not folder.is_dir():
        tell(f"exporting with {OFFICIAL.command}")
        options = ExportOptions(bits=4, block=64, lm_bits=HEAD_BITS, others=("--hqq",))
        export(subject.loaded.folder, folder, options)
    # this exporter stores scales in 32 bits
    return Model(OFFICIAL.name, folder, OFFICIAL.formats(subject.loaded.card, 32), OFFICIAL.command, "int4")


def _plan(subject: Subject, wanted: Wanted) -> Model:
    """What ``qplan emit`` ships, with its plan beside it."""
    wanted = wanted if subject.tunes else replace(wanted, tune="off")
    home = PlanFolder(subject.work / "models" / wanted.name)
    words = ["qplan emit --budget", wanted.budget]
    words += [f"--parity {wanted.parity}"] if wanted.parity != Rules.parity else []
    words += [f"--target {wanted.target}"] if wanted.target != "cpu-x86" else []
    words += [f"--tune {wanted.tune}"] if wanted.tune != EmitOptions.tune else []
    words += ["--repair 0"] if subject.quick else []
    if not home.plan.is_file():
        command = " ".join(words)
        tell(command)
        request = PlanRequest(
            budgets=parse_budgets([wanted.budget]), rules=Rules.parse(target=wanted.target, parity=wanted.parity)
        )
        repairs = 0 if subject.quick else None
        options = EmitOptions(wanted=request, tokens=PROVED_TOKENS, tune=wanted.tune, evaluations=repairs)
        emitted = run_emit(options, subject.analyzed(wanted.fold), tell, quiet, command)
        shutil.move(emitted.folder, home.folder)
    plan = Plan.read(home.plan)
    return Model(
        wanted.name,
        home.model,
        plan.formats,
        " && ".join([*subject.command_for(wanted.fold), Provenance.read(home).commands[0]]),
        None if wanted.beside is not None else wanted.budget,
        plan.dynamic_option,
        plan.mean_bits,
        for_phones=wanted.target != "cpu-x86",
        beside=wanted.beside,
    )
