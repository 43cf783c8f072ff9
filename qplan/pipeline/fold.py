"""Folds a run's model where that pays: the run goes on with the folded folder, and remembers what it came from."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from qplan.artifact import read_json, write_json
from qplan.calibration import CalibrationSet
from qplan.errors import MeasurementError, StaleArtifactError
from qplan.formats import DynamicOption, QuantFormat
from qplan.mnn.folder import new_folder
from qplan.model.card import ModelCard
from qplan.model.folding import fold, fold_sites, save_folded
from qplan.model.load import LoadedModel, load_model
from qplan.model.source import sha256_model
from qplan.pipeline.rounder import run_rounder
from qplan.pipeline.runs import Run
from qplan.planner.uniform import uniform_formats
from qplan.quantize import Int8Activations
from qplan.sensitivity.fold_evidence import gather_evidence
from qplan.sensitivity.fold_fit import expected_loss, fit_scales
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.measurement import Memory, memories_of
from qplan.sensitivity.round_all import round_all
from qplan.sensitivity.stored_cache import StoredCache

Say = Callable[[str], None]
Progress = Callable[[int, int], None]

Folding = Literal["auto", "off"]

KIND, SCHEMA = "qplan-fold", 1

FIT_TOKENS = 8192
"""At most this many tokens of the calibration's `fit` windows: fewer fit single tokens' outliers."""

BITS = (8, 4)
"""Widths of the uniform models that a fold must be good for; the head has 8 bits in both."""

EQUAL = 1e-5
"""Largest relative difference of logits between the folded and the original model in FP32."""


@dataclass(frozen=True)
class FoldRecord:
    """What was decided about folding."""

    original: str
    """Local folder or hub id of the model that the user gave."""
    original_sha256: str
    folded_sha256: str | None
    """Of the folded model; None where folding did not pay."""
    memory: Memory
    losses: Mapping[str, Mapping[str, float]]
    """Emulated joint loss in nats per token on the calibration tokens, rounded as the run rounds: by candidate
    (``original``, ``folded``) and uniform model, such as ``int8, memory low``."""

    @property
    def note(self) -> str:
        """For people."""
        ratios = "; ".join(f"{name}: {_ratio(self.losses, name):.2f}" for name in self.losses["original"])
        what = "weights are folded" if self.folded_sha256 else "folding does not pay and is left out"
        return f"{what}; loss of uniform models, folded over original: {ratios}"

    def write(self, path: Path, inputs: Mapping[str, str]) -> None:
        """Write ``fold.json``."""
        body = {
            "original": self.original,
            "original_sha256": self.original_sha256,
            "folded_sha256": self.folded_sha256,
            "memory": self.memory,
            "losses": self.losses,
        }
        write_json(path, KIND, SCHEMA, inputs, body)

    @classmethod
    def read(cls, path: Path) -> FoldRecord:
        """Read what `write` wrote.

        Raises:
            InputError: another kind of file.
            StaleArtifactError: written by a newer qplan.
        """
        value = read_json(path, KIND, SCHEMA)
        return cls(*(value[key] for key in ("original", "original_sha256", "folded_sha256", "memory", "losses")))


def fold_of(run: Run, card: ModelCard) -> FoldRecord | None:
    """How the model of a finished analysis was folded; None if it is as the user gave it."""
    if not run.fold.is_file():
        return None
    record = FoldRecord.read(run.fold)
    return record if record.folded_sha256 == card.sha256 else None


@dataclass(frozen=True)
class AnalysedModel:
    """The model of a finished analysis."""

    loaded: LoadedModel
    """What was analysed: folded, where that paid."""
    original: LoadedModel
    """As the user gave it: what MNN's exporter would make a model of; ``loaded`` itself where nothing was folded."""


def load_analysed(run: Run, card: ModelCard, say: Say) -> AnalysedModel:
    """Load the model that a run's table is about.

    Raises:
        StaleArtifactError: the model, or what it was folded to, has changed.
    """
    record = fold_of(run, card)
    say(f"loading {card.source if record is None else run.folded}")
    if record is not None:
        return AnalysedModel(_load_folded(run, record), _load_original(record))
    loaded = load_model(card.source)
    if loaded.card.sha256 != card.sha256:
        msg = f"{card.source} has changed since {run.sensitivity} was made; run 'qplan analyze' with --restart"
        raise StaleArtifactError(msg)
    return AnalysedModel(loaded, loaded)


def _load_folded(run: Run, record: FoldRecord, device: str = "cpu") -> LoadedModel:
    """The folded model, under the name that the user gave the original.

    Raises:
        StaleArtifactError: it is another one now.
    """
    folded = load_model(str(run.folded), device=device)
    if folded.card.sha256 != record.folded_sha256:
        msg = f"{run.folded} has changed since it was made; run 'qplan analyze' with --restart"
        raise StaleArtifactError(msg)
    return replace(folded, card=replace(folded.card, source=record.original))


def _load_original(record: FoldRecord) -> LoadedModel:
    """The model before folding.

    Raises:
        StaleArtifactError: it is another one now.
    """
    original = load_model(record.original)
    if original.card.sha256 != record.original_sha256:
        msg = f"{record.original} has changed since its weights were folded; run 'qplan analyze' with --restart"
        raise StaleArtifactError(msg)
    return original


def run_fold(
    run: Run,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    memory: Memory,
    *,
    dynamic_option: DynamicOption,
    rounding: str,
    batch_size: int,
    jobs: int,
    device: str,
    say: Say,
    progress: Progress,
) -> tuple[LoadedModel, str]:
    """Fit scales, fold, and keep the folded model if whole models lose less on tokens that it was not fitted to.

    Fitted to the calibration's `fit` windows, judged on those that losses are measured on, with the run's rounding:
    error feedback makes up for some of what folding would. Decided once per run.

    Returns:
        The folded model as it lies in the run folder, or ``loaded``; and a note for the table.

    Raises:
        StaleArtifactError: the run folds from other inputs; its folded model is left alone.
        MeasurementError: the folded model is another function, or the model cannot be differentiated.
    """
    inputs = {
        "model": loaded.card.sha256,
        "fit": calibration.fit_sha256,
        "judge": calibration.sha256,
        "memory": memory,
        "dynamic_option": str(dynamic_option),
        "rounding": rounding,
    }
    if run.fold.is_file():
        _check_inputs(run, inputs)
        record = FoldRecord.read(run.fold)
    else:
        record = _decide(
            run,
            loaded,
            calibration,
            memory,
            dynamic_option=dynamic_option,
            rounding=rounding,
            batch_size=batch_size,
            jobs=jobs,
            say=say,
            progress=progress,
        )
        record.write(run.fold, inputs)
    if record.folded_sha256 is None:
        return loaded, record.note
    return _load_folded(run, record, device), record.note


def _check_inputs(run: Run, inputs: Mapping[str, str]) -> None:
    """Refuse to fold anew what a finished table may stand on.

    Raises:
        StaleArtifactError: names what changed.
    """
    found = read_json(run.fold, KIND, SCHEMA)["inputs"]
    words = {"model": "the model", "fit": "the text that rounding fits to", "judge": "the calibration text"}
    changes = [words.get(key, key) for key, value in inputs.items() if found.get(key) != value]
    if changes:
        msg = (
            f"{run.fold} was made from other inputs, changed: {', '.join(changes)}. To go on, use another folder "
            "(--run DIR) or start over (--restart)"
        )
        raise StaleArtifactError(msg)


def fitted_scales(
    loaded: LoadedModel,
    tokens: Tensor,
    memory: Memory,
    *,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Scales of every site, fitted to ``tokens [rows, seq_len]``."""
    plans = list(_uniform(loaded).values())
    memories = memories_of(memory)
    evidence = gather_evidence(loaded, tokens, fold_sites(loaded), batch_size=batch_size, progress=progress)
    totals = torch.zeros(len(memories), len(plans), device=loaded.device)
    for found in evidence:
        ones = torch.ones(found.site.channels, device=loaded.device)
        totals += expected_loss(found, loaded, ones, plans, memories)
    scales = {}
    for number, found in enumerate(evidence):
        scales[found.site.name] = fit_scales(found, loaded, plans, totals, memories)
        if progress is not None:
            progress(number + 1, len(evidence))
    return scales


def _decide(
    run: Run,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    memory: Memory,
    *,
    dynamic_option: DynamicOption,
    rounding: str,
    batch_size: int,
    jobs: int,
    say: Say,
    progress: Progress,
) -> FoldRecord:
    rows = max(1, FIT_TOKENS // calibration.seq_len)
    fit = torch.from_numpy(calibration.fit[:rows])
    judge = torch.from_numpy(calibration.tokens)
    say(f"folding: scales fitted to {fit.numel()} tokens")
    folded = fold(loaded, fitted_scales(loaded, fit, memory, batch_size=batch_size, progress=progress))
    check_equal(loaded, folded, judge[:1])
    with new_folder(run.folded, replace=True) as draft:
        save_folded(folded, draft)
    sha256 = sha256_model(run.folded)
    folded = replace(folded, card=replace(folded.card, sha256=sha256))
    activations = Int8Activations("prefill", dynamic_option)
    losses: dict[str, dict[str, float]] = {}
    caches: dict[str, StoredCache | None] = {}
    for label, model in (("original", loaded), ("folded", folded)):
        say(f"folding: uniform models, {label}")
        rounder = run_rounder(run, model, calibration, rounding, batch_size=batch_size, progress=progress)
        losses[label], caches[label] = {}, rounder.cache
        plans = _uniform(model)
        menu = {spec.name: [plan[spec.name] for plan in plans.values()] for spec in model.card.tensors}
        round_all(rounder, menu, jobs=jobs, progress=progress)
        for setting in memories_of(memory):
            found = joint_losses(
                model,
                judge,
                plans,
                setting,
                activations,
                batch_size=batch_size,
                rounder=rounder,
                progress=progress,
            )
            losses[label] |= {f"{name}, memory {setting}": stats.kl_nats for name, stats in found.items()}
    pays = math.prod(_ratio(losses, name) for name in losses["original"]) < 1
    rejected = caches["original" if pays else "folded"]
    for folder in ([] if rejected is None else [rejected.folder]) + ([] if pays else [run.folded]):
        shutil.rmtree(folder, ignore_errors=True)
    record = FoldRecord(loaded.card.source, loaded.card.sha256, sha256 if pays else None, memory, losses)
    say(record.note)
    return record


def check_equal(original: LoadedModel, folded: LoadedModel, tokens: Tensor) -> float:
    """Relative difference of all logits on ``tokens [rows, seq_len]``.

    Raises:
        MeasurementError: more than `EQUAL`.
    """
    expected = original.logits(tokens).to(torch.float64)
    error = float((folded.logits(tokens).to(torch.float64) - expected).norm() / expected.norm())
    if not error <= EQUAL:
        msg = (
            f"the folded model's logits differ from the original's by {error:.1e}, more than {EQUAL:.0e}: "
            f"qplan's folds for {original.card.architecture} are wrong; use --fold off"
        )
        raise MeasurementError(msg)
    return error


def _uniform(loaded: LoadedModel) -> dict[str, dict[str, QuantFormat]]:
    return {f"int{bits}": uniform_formats(loaded.card, bits) for bits in BITS}


def _ratio(losses: Mapping[str, Mapping[str, float]], name: str) -> float:
    before = losses["original"][name]
    return losses["folded"][name] / before if before else 1.0
