"""FP32, FP16, INT8, INT4 and the plan on the engine, until one breaks its tolerance; then, where it breaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import temporary_folder
from qplan.calibration import check_limits, load_text, tokenize
from qplan.cost.target import find_target
from qplan.errors import InputError, StaleArtifactError
from qplan.folding.analyzed import load_analyzed
from qplan.formats import FP16, FP32, QuantFormat
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.skeleton import Skeleton, folder_bytes
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.model.model_settings import model_config
from qplan.rounding.rounder import Rounder
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.plans import run_of
from qplan.run.table import SensitivityTable
from qplan.sensitivity.kept_logits import KeptLogits, Logits, kept_logits
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats
from qplan.settings import Say
from qplan.tuning.kept import built_rounder
from qplan.uniform import uniform_formats
from qplan.verify.checks import exact_limit
from qplan.verify.ladder import Break, LadderOptions, Rung, first_layer_beyond, tolerances
from qplan.verify.layers import engine_lens, kl_between
from qplan.verify.lens import lens_logits
from qplan.verify.reference import relative_error

LOOK_TOKENS = 64
"""Length of the sequence that is compared logit by logit and layer by layer."""


@dataclass(frozen=True)
class Climbed:
    """How far the ladder held."""

    text: str
    reference_perplexity: float
    rungs: tuple[Rung, ...]
    broke: Break | None
    """Where the last rung broke; None if all hold."""


@dataclass(frozen=True)
class _Step:
    """A rung, already built or still to be built."""

    name: str
    formats: Mapping[str, QuantFormat]
    rounder: Rounder
    """Chooses the integers that it stores; its model may be folded."""
    built: Path | None = None


def run_ladder(options: LadderOptions, say: Say, progress: Callable[[int, int], None]) -> Climbed:
    """Build, run and judge rung by rung.

    Raises:
        InputError: a model, text, plan, tolerance or length of sequences that cannot be used.
        ToolError: exporter, converter or engine failed.
    """
    limits = tolerances(options.limits)
    check_limits(options.samples, options.seq_len, model_config(options.model).max_position_embeddings)
    say(f"loading {options.model}")
    loaded = load_model(options.model)
    rows, text = _rows(options, loaded, say)
    steps = _steps(options, loaded, say)
    with temporary_folder("ladder") as temporary:
        work = Path(temporary)
        say(f"FP32 in torch on {rows.size} tokens: {text}")
        with kept_logits(loaded, rows, progress) as reference:
            say("exporting the graph")
            skeleton = export_skeleton(loaded.folder, work / "skeleton", llmexport=options.llmexport)
            bench = _RungBench(loaded, skeleton, reference, options.memory, work)
            rungs: list[Rung] = []
            for step in steps:
                say(f"{step.name} on the engine")
                folder = step.built or bench.build(step)
                rung = bench.rung(step, folder, limits[step.name])
                rungs.append(rung)
                if not rung.holds:
                    say(f"{step.name} breaks; looking for the layer")
                    return Climbed(text, reference.perplexity, tuple(rungs), bench.where(step, folder, rung))
            return Climbed(text, reference.perplexity, tuple(rungs), None)


def _rows(options: LadderOptions, loaded: LoadedModel, say: Say) -> tuple[NDArray[np.int64], str]:
    text = load_text(options.text, loaded.tokenizer, say)
    judged = tokenize(
        text,
        loaded.tokenizer,
        samples=options.samples,
        seq_len=options.seq_len,
        seed=0,
        context=loaded.card.context,
        vocabulary=loaded.card.vocabulary,
    )
    return judged.tokens, text.source


def _steps(options: LadderOptions, loaded: LoadedModel, say: Say) -> list[_Step]:
    nearest = Rounder(loaded)
    # the engine looks a tied embedding up in fp16 at best
    floats = {spec.name: FP16 if spec.tied else FP32 for spec in loaded.card.tensors}
    steps = [_Step("fp32", floats, nearest)]
    for name, bits in (("fp16", 16), ("int8", 8), ("int4", 4)):
        steps.append(_Step(name, uniform_formats(loaded.card, bits), nearest))
    if options.plan is None:
        return steps
    plan, built = Plan.read(options.plan), PlanFolder(options.plan.parent).model
    run = run_of(options.plan)
    table = SensitivityTable.read(run.sensitivity)
    analyzed = load_analyzed(run, table.model, say)
    if plan.model_sha256 != table.model.sha256 or analyzed.original.card.sha256 != loaded.card.sha256:
        msg = f"{options.plan} was made for another model than {options.model}; run 'qplan analyze' and 'emit' again"
        raise StaleArtifactError(msg)
    if not built.is_dir():
        msg = f"{built} is not there; build the plan with 'qplan emit'"
        raise InputError(msg)
    calibration = CalibrationSet.read(run.calibration)
    within_int16 = find_target(plan.target).adds_in_int16
    rounder = run_rounder(run, analyzed.loaded, calibration, table.conditions.rounding, within_int16=within_int16)
    return [*steps, _Step("plan", plan.formats, built_rounder(run, rounder, calibration, plan), built)]


@dataclass(frozen=True)
class _RungBench:
    """Builds rungs and measures them."""

    loaded: LoadedModel
    skeleton: Skeleton
    reference: KeptLogits
    memory: str
    work: Path

    def build(self, step: _Step) -> Path:
        folder = self.work / step.name
        build_model(self.skeleton, self.loaded.card.tensors, step.formats, step.rounder.store, folder)
        return folder

    def rung(self, step: _Step, folder: Path, limit_nats: float) -> Rung:
        with EngineSession(folder, RuntimeConfig("normal"), context=self.loaded.card.context) as engine:
            exact = relative_error(engine.logits(self.ids), self._expected(step)[-1])
        with EngineSession(folder, RuntimeConfig(self.memory), context=self.loaded.card.context) as engine:
            stats = self.reference.compare(engine.logits)
        return Rung(
            name=step.name,
            exact_error=exact,
            exact_limit=exact_limit(step.rounder.loaded, self.ids, exact),
            kl_nats=stats.kl_nats,
            limit_nats=limit_nats,
            top1=stats.top1,
            perplexity=float(np.exp(stats.nll_nats)),
            bytes=folder_bytes(folder).total,
        )

    def where(self, step: _Step, folder: Path, rung: Rung) -> Break:
        """Look at the residual stream through the head, after fewer and fewer layers."""
        if not rung.computes:
            expected, memory, limit = self._expected(step), "normal", rung.exact_limit
            measure = "relative error of the logits against torch with the same weights"

            def distance(found: Logits, wanted: Logits) -> float:
                return relative_error(found, wanted)

        else:
            expected, memory, limit = lens_logits(self.loaded, self.ids), self.memory, rung.limit_nats
            measure = "KL to FP32 of what the head reads, nats per token"

            def distance(found: Logits, wanted: Logits) -> float:
                return kl_between(wanted, found, self.ids)

        layers = len(self.loaded.layers)
        with engine_lens(folder, step.rounder.loaded, RuntimeConfig(memory), self.ids, self.work) as logits_after:
            after, before_error, error = first_layer_beyond(
                lambda count: distance(logits_after(count), expected[count]), layers, limit
            )
        layer = after - 1 if after else None
        what = "the embedding, or the final norm and the head" if layer is None else f"layer {layer} of {layers}"
        return Break(layer, what, before_error, error, measure)

    def _expected(self, step: _Step) -> tuple[Logits, ...]:
        """What torch computes with the weights that a rung stores, after 0, 1, ... all layers."""
        loaded = step.rounder.loaded
        stored = StoredWeights(loaded, step.rounder)
        with apply_formats(loaded, step.formats, "normal", stored=stored, engine_embedding=True):
            return lens_logits(loaded, self.ids)

    @property
    def ids(self) -> list[int]:
        """One sequence, for comparisons logit by logit."""
        found: list[int] = self.reference.rows[0][:LOOK_TOKENS].tolist()
        return found
