"""The ladder on the engine: FP16, the uniform models, the plan; each rung measured against FP32 in torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from qplan.artifact import is_there, sha256_file, versions
from qplan.errors import VerificationError
from qplan.formats import has_options
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.model_settings import settings_of
from qplan.planner.rules import Rules
from qplan.rounding.rounder import Rounder
from qplan.run.baselines import baseline_path, baseline_token_losses, measured_once
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.token_losses import Losses, TokenLosses
from qplan.run.verification import BuiltModel, Check, Speed, Verification, best_built
from qplan.sensitivity.metrics import TokenStats
from qplan.sensitivity.paired import mean_stderr
from qplan.settings import MEMORIES, DynamicOption, Memory
from qplan.uniform import COMPARED, RIVALS, UniformExport, built_exports, uniform_formats
from qplan.verify.bench import BuildBench
from qplan.verify.checks import (
    RIGHT_REL,
    emulation,
    exact_logits,
    not_worse,
    promised_bytes,
    read_back,
)
from qplan.verify.measure import Keep, measure_model
from qplan.verify.parity import Speeds, parity_checks
from qplan.verify.same_tokens import same_tokens
from qplan.verify.uniform_builds import UniformBuilds


def gate(bench: BuildBench) -> tuple[Check, ...]:
    """Prove that the exporter translates this architecture right, before anything is planned on it.

    On a short sequence, to float rounding; and on one beyond the model's windows and original context, if it has any.
    Where the engine may not take the whole model, its first layers under its norm and head stand for all.
    The exported tokenizer must make Hugging Face's tokens of ordinary texts; what it makes of others, `prove` lists.

    Raises:
        VerificationError: the engine computes something else than the Hugging Face model, or reads texts otherwise.
    """
    formats = uniform_formats(bench.loaded.card, 16)
    layers = bench.layers(formats)
    part = "" if layers is None else f", its first {layers} of {len(bench.loaded.layers)} layers for --max-memory"
    bench.say(f"FP16 on the engine against the Hugging Face model{part}")
    folder = bench.baselines / "gate"
    bench.build(formats, folder, RuntimeConfig("normal"), layers=layers)
    try:
        with bench.first_layers(folder, layers) as engine:
            exact = partial(exact_logits, "fp16", engine, formats, Rounder(bench.loaded), layers=layers)
            checks = [exact(bench.token_ids)]
            if checks[0].passed and bench.long_tokens is not None:
                checks.append(exact(bench.tokens(bench.long_tokens), limit=RIGHT_REL))
            tokens = same_tokens(engine, bench.loaded.tokenizer)
    finally:
        shutil.rmtree(folder)
    for check in checks:
        if not check.passed:
            raise VerificationError(_wrong_export(bench, check))
    if not tokens.passed:
        msg = (
            f"the tokenizer as exported by {bench.skeleton.exporter} makes other tokens on the engine than Hugging "
            f"Face's: {tokens.found}. The built model would be given other texts than people write. Save the model "
            "with a tokenizer whose normalizer and pre-tokenizer the engine knows, or try --llmexport with a newer MNN "
            "checkout"
        )
        raise VerificationError(msg)
    return tuple(checks)


def _wrong_export(bench: BuildBench, check: Check) -> str:
    settings = [f"{setting.key} {setting.value}" for setting in settings_of(bench.loaded.config)]
    suspects = f" Its config has {', '.join(settings)}, which the exporter may drop." if settings else ""
    return (
        f"{bench.loaded.card.architecture} as exported by {bench.skeleton.exporter} computes other logits on the "
        f"engine than the Hugging Face model: {check.found}. The export is wrong for this model; every quantized "
        f"version would be too.{suspects} Try --llmexport with a newer MNN checkout"
    )


def prove(
    bench: BuildBench,
    plan: Plan,
    plan_path: Path,
    model: Path,
    *,
    first: tuple[Check, ...],
    rounder: Rounder,
    speeds: Speeds | None = None,
    builds: UniformBuilds,
    rivals: int = RIVALS,
) -> Verification:
    """Measure FP16, the uniform models and the built plan, and hold the plan's promises against the results.

    Args:
        bench: model, skeleton, tokens.
        plan: what was built.
        plan_path: its file, whose hash the verification carries.
        model: the built folder.
        first: what was proved before: the results of `gate`, and that `qplan check` accepts the folder.
        rounder: chose the integers that the plan was built with.
        speeds: of the built model and of uniform ones, from `timed_by_turns`; what is missing is timed by itself.
        builds: where uniform models are built: from the model before folding.
        rivals: how many of the plan's rivals are built, besides those that every plan is compared with.

    Raises:
        ToolError: the engine failed.
        MeasurementError: logits that are not finite.
    """
    baselines: dict[str, BuiltModel] = {}
    timed = speeds or {}
    exports = built_exports([rival.name for rival in plan.rivals], rivals)
    for done, export in enumerate(exports, 1):
        baseline = _baseline(builds, export, timed)
        if baseline is not None:
            baselines[export.name] = baseline
        bench.tell(done, len(exports) + 1)
    built = _measure_plan(bench, plan, model, rounder, timed)
    bench.tell(len(exports) + 1, len(exports) + 1)
    layers = bench.layers(plan.formats)
    with bench.first_layers(model, layers) as engine:
        checks = [*first, exact_logits("plan", engine, plan.formats, rounder, bench.token_ids, layers=layers)]
        checks.append(same_tokens(engine, bench.loaded.tokenizer))
    checks.append(read_back(model, plan))
    checks += promised_bytes(plan, built)
    # a rival's emulation is no promise of the plan's
    checks += emulation(built, bench.loaded.card)
    # what a user's own rules cost is told, and no promise
    for rival in () if Rules.of(plan).restricts else _rivals(plan, baselines):
        # the best rival was chosen by what it loses under the plan's own setting
        memories = MEMORIES if rival.name in COMPARED else (plan.memory,)
        checks += not_worse(built, rival, memories, _stderrs(bench, model, rival.name))
    checks += parity_checks(plan, timed)
    return Verification(
        model_sha256=bench.loaded.card.sha256,
        plan_sha256=sha256_file(plan_path),
        text=bench.text,
        text_sha256=bench.text_sha256,
        reference_perplexity=bench.trial.reference.perplexity,
        models=(*baselines.values(), built),
        checks=tuple(checks),
    )


def _measure_plan(bench: BuildBench, plan: Plan, model: Path, rounder: Rounder, speeds: Speeds) -> BuiltModel:
    """Measure the built plan as it ships, and with the other ``dynamic_option`` where that changes anything."""
    other: DynamicOption = 0 if plan.dynamic_option else 2
    with _kept_tokens(bench, "plan", PlanFolder(model.parent).token_losses) as keep:
        return measure_model(
            "plan",
            model,
            plan.formats,
            rounder=rounder,
            trial=bench.trial,
            say=bench.say,
            dynamic_option=plan.dynamic_option,
            precision=plan.precision,
            beside=other if has_options(plan.formats) else None,
            speeds=_of_model("plan", speeds),
            keep=keep,
            memories=bench.settings(plan.formats),
        )


@contextmanager
def _kept_tokens(bench: BuildBench, name: str, path: Path) -> Iterator[Keep]:
    """Keep the losses of single tokens, and write them beside the model once it is measured."""
    rows, decode = bench.trial.reference.rows, bench.loaded.tokenizer.decode
    found: dict[str, Losses] = {}

    def keep(memory: Memory, stats: TokenStats) -> None:
        found[memory] = stats.kl.numpy().reshape(rows.shape).astype(np.float32)

    yield keep
    tokens = tuple(tuple(decode([token]) for token in row.tolist()) for row in rows)
    TokenLosses(name, bench.loaded.card.sha256, str(bench.text), bench.text_sha256, tokens, found).write(path)


def _of_model(name: str, speeds: Speeds) -> dict[DynamicOption, Speed]:
    """The speeds of one model by ``dynamic_option``."""
    return {option: speed for (known, option), speed in speeds.items() if known == name}


def _baseline(builds: UniformBuilds, export: UniformExport, speeds: Speeds) -> BuiltModel | None:
    """A uniform model under the settings in which it can be run; None if in none."""
    name, bench, rounder = export.name, builds.bench, builds.bench.exporter(export)
    timed = _of_model(name, speeds)
    formats = {tensor: bench.target.wide(fmt) for tensor, fmt in export.formats(bench.loaded.card).items()}
    memories = bench.settings(formats)
    if not memories:
        return None
    card, trial = bench.loaded.card, bench.trial.settings
    inputs = baseline_inputs(card.sha256, bench.text_sha256, bench.skeleton.exporter, trial, memories)

    def measure() -> BuiltModel:
        folder = builds.folder(name, formats, rounder)
        try:
            with _kept_tokens(bench, name, baseline_token_losses(bench.baselines, name)) as keep:
                return measure_model(
                    name,
                    folder,
                    formats,
                    rounder=rounder,
                    trial=bench.trial,
                    say=bench.say,
                    speeds=timed,
                    keep=keep,
                    memories=memories,
                )
        finally:
            builds.remove(name)

    found = measured_once(baseline_path(bench.baselines, name), inputs, formats, measure)
    # another plan's proof may have timed it, in other minutes
    return replace(found, speed=timed.get(0, found.speed))


def baseline_inputs(
    model_sha256: str, text_sha256: str, exporter: str, trial: str, memories: Sequence[Memory] = MEMORIES
) -> dict[str, str]:
    """What the measurements of a uniform model depend on, beside its formats.

    Args:
        model_sha256: the model as it is exported uniformly.
        text_sha256: what it is measured on.
        exporter: that made the graph.
        trial: see `Trial.settings`.
        memories: the settings that it is run under.
    """
    if tuple(memories) != MEMORIES:
        trial += f", memory {' '.join(memories)}"
    found = {"model": model_sha256, "text": text_sha256, "exporter": exporter}
    return found | {"engine": versions()["MNN"], "trial": trial}


def _stderrs(bench: BuildBench, model: Path, rival: str) -> dict[str, float]:
    """Standard errors of the difference between the built plan and a uniform model, by memory setting."""
    paths = PlanFolder(model.parent).token_losses, baseline_token_losses(bench.baselines, rival)
    if not all(is_there(path) for path in paths):
        return {}
    ours, its = (TokenLosses.read(path) for path in paths)
    if ours.text_sha256 != its.text_sha256:
        return {}
    differences = {
        memory: torch.from_numpy(losses.astype(np.float64) - its.kl_nats[memory])
        for memory, losses in ours.kl_nats.items()
        if memory in its.kl_nats and its.kl_nats[memory].shape == losses.shape
    }
    return {memory: mean_stderr(difference) or 0.0 for memory, difference in differences.items()}


def _rivals(plan: Plan, uniform: Mapping[str, BuiltModel]) -> list[BuiltModel]:
    """Uniform models that the plan must not be worse than.

    The widest plain one that fits the budget, give or take the graph's 1 %, and the best that was built of those within
    all limits.
    """
    plain = [model for name, model in uniform.items() if name in COMPARED]
    fitting = [m for m in plain if m.files.total <= plan.budget_bytes + m.files.graph // 100]
    found = [max(fitting, key=lambda model: model.files.total)] if fitting else []
    best = best_built(plan, uniform)
    return found if best is None or best in found else [*found, best]
