"""Folds a run's model if that lowers the loss. The run then continues with the folded copy and records its origin."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qplan.artifact import is_there, new_folder
from qplan.errors import MeasurementError, StaleArtifactError
from qplan.folding.analyzed import load_folded
from qplan.folding.evidence import gather_evidence
from qplan.folding.fit import expected_loss, fit_scales
from qplan.folding.fold import fold, fold_sites, save_folded
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.model.source import sha256_beside_model, sha256_model
from qplan.notes import Note
from qplan.rounding import Int8Activations
from qplan.rounding.round_all import round_all
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import FoldRecord, fold_ratio, inputs_of
from qplan.run.fold_draft import FoldDraft
from qplan.run.folder import RunFolder
from qplan.sensitivity.joint import joint_losses
from qplan.settings import DynamicOption, Memory, Progress, Say, memories_of
from qplan.spread.work import Workers
from qplan.uniform import uniform_formats

FIT_TOKENS = 8192
"""Most tokens of the calibration's `fit` windows that scales are fitted to; with fewer, single outliers dominate."""

BITS = (8, 4)
"""Widths of the uniform models that a fold is judged by; the head has 8 bits in both."""

EQUAL = 1e-5
"""Largest relative difference of logits between the folded and the original model in FP32."""


def run_fold(
    run: RunFolder,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    memory: Memory,
    *,
    dynamic_option: DynamicOption,
    rounding: str,
    batch_size: int,
    jobs: int,
    workers: Workers | None = None,
    device: str,
    say: Say,
    progress: Progress,
) -> tuple[LoadedModel, Note]:
    """Fit scales, fold, and keep the folded model if whole models lose less on tokens that it was not fitted to.

    Scales are fitted to the calibration's `fit` windows and judged on the windows that losses are measured on. Models
    are rounded as the run rounds, since error feedback repairs part of what folding would. A run decides once.

    Returns:
        The folded model as stored in the run folder, or ``loaded``, and a note for the table.

    Raises:
        StaleArtifactError: the run decided this from other inputs; its folded model is left alone.
        MeasurementError: the folded model computes something else, or the model cannot be differentiated.
    """
    inputs = {
        "model": loaded.card.sha256,
        "fit": calibration.fit_sha256,
        "judge": calibration.sha256,
        "memory": memory,
        "dynamic_option": str(dynamic_option),
        "rounding": rounding,
    }
    if is_there(run.fold):
        check_fold_inputs(run, inputs)
        record = FoldRecord.read(run.fold)
    else:
        draft = FoldDraft.open(run.fold_draft, inputs, say)
        record = _decide(
            run,
            loaded,
            calibration,
            memory,
            draft,
            dynamic_option=dynamic_option,
            rounding=rounding,
            batch_size=batch_size,
            jobs=jobs,
            workers=workers,
            say=say,
            progress=progress,
        )
        record.write(run.fold, inputs)
        run.fold_draft.unlink(missing_ok=True)
    if record.folded_sha256 is None:
        return loaded, record.note
    return load_folded(run, record, device).within(loaded.card.context), record.note


def check_fold_inputs(run: RunFolder, inputs: Mapping[str, str]) -> None:
    """Refuse to replace a fold that a finished table may depend on.

    Raises:
        StaleArtifactError: inputs differ; the message says which.
    """
    found = inputs_of(run.fold)
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
    draft: FoldDraft | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Scales ``[channels]`` by site name, fitted to ``tokens [rows, seq_len]``; a draft gives and keeps them."""
    known = {} if draft is None else draft.scales
    scales = {name: torch.tensor(scale, device=loaded.device) for name, scale in known.items()}
    sites = fold_sites(loaded)
    if all(site.name in scales for site in sites):
        return scales
    plans = list(_uniform(loaded).values())
    memories = memories_of(memory)
    evidence = gather_evidence(loaded, tokens, sites, batch_size=batch_size, progress=progress)
    totals = torch.zeros(len(memories), len(plans), device=loaded.device)
    for found in evidence:
        ones = torch.ones(found.site.channels, device=loaded.device)
        totals += expected_loss(found, loaded, ones, plans, memories)
    for number, found in enumerate(evidence):
        name = found.site.name
        if name not in scales and not found.flat:
            scales[name] = fit_scales(found, loaded, plans, totals, memories)
            if draft is not None:
                draft.add_scale(name, scales[name].tolist())
        if progress is not None:
            progress(number + 1, len(evidence))
    if draft is not None:
        draft.write()
    return scales


def _decide(
    run: RunFolder,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    memory: Memory,
    draft: FoldDraft,
    *,
    dynamic_option: DynamicOption,
    rounding: str,
    batch_size: int,
    jobs: int,
    workers: Workers | None = None,
    say: Say,
    progress: Progress,
) -> FoldRecord:
    rows = max(1, FIT_TOKENS // calibration.seq_len)
    fit = torch.from_numpy(calibration.fit[:rows])
    judge = torch.from_numpy(calibration.tokens)
    say(f"folding: scales fitted to {fit.numel()} tokens")
    if draft.scales:
        measured = sum(map(len, draft.losses.values()))
        say(f"folding: going on from {len(draft.scales)} places' scales and {measured} losses in {run.fold_draft}")
    scales = fitted_scales(loaded, fit, memory, batch_size=batch_size, draft=draft, progress=progress)
    folded = store_folded(run, loaded, scales, judge[:1])
    activations = Int8Activations("prefill", dynamic_option)
    for label, model in (("original", loaded), ("folded", folded)):
        plans = _uniform(model)
        missing = [
            setting
            for setting in memories_of(memory)
            if any(_loss_name(name, setting) not in draft.losses.get(label, {}) for name in plans)
        ]
        if not missing:
            continue
        say(f"folding: uniform models, {label}")
        menu = {spec.name: [plan[spec.name] for plan in plans.values()] for spec in model.card.tensors}
        rounder = run_rounder(
            run, model, calibration, rounding, menu=menu, batch_size=batch_size, workers=workers, progress=progress
        )
        round_all(rounder, menu, jobs=jobs, progress=progress)
        for setting in missing:
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
            losses = {_loss_name(name, setting): stats.kl_nats for name, stats in found.items()}
            draft.add_losses(label, losses, None if rounder.cache is None else rounder.cache.folder)
    pays = math.prod(fold_ratio(draft.losses, name) for name in draft.losses["original"]) < 1
    rejected = draft.rounded.get("original" if pays else "folded")
    for folder in ([] if rejected is None else [run.rounding / rejected]) + ([] if pays else [run.folded]):
        shutil.rmtree(folder, ignore_errors=True)
    record = fold_record(run, loaded, folded if pays else None, memory, draft.losses)
    say(str(record.note))
    return record


def fold_record(
    run: RunFolder,
    loaded: LoadedModel,
    folded: LoadedModel | None,
    memory: Memory,
    losses: Mapping[str, Mapping[str, float]],
) -> FoldRecord:
    """What was decided about a model: the folded one that is in the run folder, or None."""
    return FoldRecord(
        loaded.card.source,
        loaded.card.sha256,
        None if folded is None else folded.card.sha256,
        memory,
        losses,
        None if folded is None else sha256_beside_model(run.folded),
    )


def store_folded(run: RunFolder, loaded: LoadedModel, scales: Mapping[str, Tensor], tokens: Tensor) -> LoadedModel:
    """Fold a model and write it into the run folder, with its own hash; checked on ``tokens [rows, seq_len]``.

    Raises:
        MeasurementError: the folded model computes something else.
    """
    folded = fold(loaded, scales)
    check_equal(loaded, folded, tokens)
    with new_folder(run.folded, replace=True) as made:
        save_folded(folded, made)
    return replace(folded, folder=run.folded, card=replace(folded.card, sha256=sha256_model(run.folded)))


def check_equal(original: LoadedModel, folded: LoadedModel, tokens: Tensor) -> float:
    """Check that folding kept the model's logits on ``tokens [rows, seq_len]``; returns their relative difference.

    Raises:
        MeasurementError: the difference is larger than `EQUAL`.
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


def _loss_name(uniform: str, memory: str) -> str:
    return f"{uniform}, memory {memory}"


def _uniform(loaded: LoadedModel) -> dict[str, dict[str, QuantFormat]]:
    return {f"int{bits}": uniform_formats(loaded.card, bits) for bits in BITS}
