"""Measures this machine's time for every op shape and format, by running whole models with one shape changed.

Weights are random, since their values do not affect the time. Each shape alone is changed to each other format. Uniform
models of that format correct the sum of these changes, so that noise does not accumulate.
"""

from __future__ import annotations

import math
import platform
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from qplan.artifact import sha256_json, versions
from qplan.card import ModelCard
from qplan.cost.target import DEFAULT_TARGET, Target, find_target
from qplan.cost.times import Shape, changes_of_shapes
from qplan.folding.analyzed import load_analyzed
from qplan.formats import FP16, INT8, Formats, QuantFormat
from qplan.jobs.options import ProfileOptions
from qplan.jobs.skeletons import run_skeleton
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession, SpeedSample
from qplan.mnn.runtime import RuntimeConfig
from qplan.rounding import IntTensor, StoredTensor, store_float
from qplan.run.folder import RunFolder
from qplan.run.lock import alone_in_run
from qplan.run.profile import DeviceProfile, OpTime, TimedModel
from qplan.run.table import SensitivityTable
from qplan.run.times import Times, TimesJournal
from qplan.settings import Progress, Say
from qplan.tensors import TensorSpec

_KEEP_BYTES = 4_000_000_000
"""Most bytes of models on disk at a time for measuring them in turn; above it, each is built, measured and deleted."""


def fastest(sample: SpeedSample) -> Times:
    """Fastest times of one sample."""
    steps = np.array(sample.decode_s).reshape(len(sample.prefill_s), -1)
    return Times(1e3 * min(sample.prefill_s), 1e3 * float(steps.min(axis=0).mean()))


def profile(
    table: SensitivityTable,
    skeleton: Skeleton,
    target: Target,
    *,
    scratch: Path,
    options: ProfileOptions,
    say: Say,
    progress: Progress | None = None,
) -> DeviceProfile:
    """Measure a model's ops on this machine.

    Args:
        table: table whose formats are timed, under its memory setting.
        skeleton: the exported graph.
        target: hardware, which says which widths take the same time.
        scratch: folder for built models and the journal of times; removed at the end.
        options: how thoroughly to measure.
        say: called with a line about each step.
        progress: called after each timed model.

    Raises:
        ToolError: converter or engine failed.
    """
    card = table.model
    classes = time_classes(table, target)
    base = _uniform(card, INT8)
    trials: dict[str, Formats] = {"base": base}
    for fmt in dict.fromkeys(f for found in classes.values() for f in found):
        trials[f"uniform {fmt}"] = uniform_trial(card, classes, fmt)
    for shape, formats in classes.items():
        for fmt in formats:
            changed = {spec.name: fmt for spec in card.tensors if shape_of(spec) == shape}
            trials[f"{shape} {fmt}"] = {**base, **changed}
    times = measure_times(
        card, skeleton, trials, table.goal, scratch=scratch, options=options, say=say, progress=progress
    )
    counts = Counter(shape_of(spec) for spec in card.tensors)
    (base_prefill, prefill), (base_decode, decode) = (
        changes_of_shapes(
            classes, counts, {label: [getattr(t, kind) for t in rounds] for label, rounds in times.items()}
        )
        for kind in ("prefill_ms", "decode_ms")
    )
    return DeviceProfile(
        machine=machine(),
        engine=versions()["MNN"],
        target=target.name,
        memory=table.goal,
        threads=options.threads,
        prompt_tokens=options.prompt_tokens,
        model_sha256=card.sha256,
        base=INT8.name,
        base_prefill_ms=base_prefill,
        base_decode_ms=base_decode,
        ops=op_times(classes, counts, prefill, decode),
        models=tuple(
            TimedModel(label, min(t.prefill_ms for t in rounds), min(t.decode_ms for t in rounds))
            for label, rounds in times.items()
        ),
    )


def op_times(
    classes: Mapping[Shape, Sequence[QuantFormat]],
    counts: Mapping[Shape, int],
    prefill: Mapping[tuple[Shape, QuantFormat], float],
    decode: Mapping[tuple[Shape, QuantFormat], float],
) -> tuple[OpTime, ...]:
    """Times of every shape in every format, the base first.

    Args:
        classes: formats by shape, without the base.
        counts: tensors by shape.
        prefill: milliseconds beyond the base, by shape and format; those left out take none.
        decode: the same of a decoded token.
    """
    return tuple(
        OpTime(*shape, fmt.name, counts[shape], prefill.get((shape, fmt), 0.0), decode.get((shape, fmt), 0.0))
        for shape, formats in classes.items()
        for fmt in (INT8.resolve(shape[1]), *formats)
    )


def measure_times(
    card: ModelCard,
    skeleton: Skeleton,
    trials: Mapping[str, Formats],
    memory: str,
    *,
    scratch: Path,
    options: ProfileOptions,
    say: Say,
    progress: Progress | None = None,
) -> dict[str, list[Times]]:
    """Build models and time them in several rounds: in turn, or one after the other if they are large.

    An interrupted call is resumed from the times in ``scratch``.

    Raises:
        ToolError: converter or engine failed.
    """
    runtime = RuntimeConfig(memory, threads=options.threads)
    decode = max(1, min(options.decode_tokens, card.context // 4))
    prompt = max(1, min(options.prompt_tokens, card.context - decode))
    size = sum(spec.bytes_in(FP16) for spec in card.tensors) * len(trials)
    in_turn = size <= _KEEP_BYTES
    rounds = range(options.rounds)
    order = [(label, r) for r in rounds for label in trials] if in_turn else [(k, r) for k in trials for r in rounds]
    how = "in turn" if in_turn else "one model after the other"
    say(f"timing {len(trials)} models, rounds: {options.rounds}, {how}")
    depends = {
        "model": card.sha256,
        "trials": sha256_json({k: {name: str(fmt) for name, fmt in formats.items()} for k, formats in trials.items()}),
        "machine": machine(),
        "engine": versions()["MNN"],
        "memory": memory,
        "counts": f"{options.threads} threads, {prompt} and {decode} tokens, {options.repeats} repeats",
    }
    journal = TimesJournal.open(scratch, depends)
    models = scratch / "models"
    folders = {label: models / str(number) for number, label in enumerate(trials)}
    shutil.rmtree(models, ignore_errors=True)  # a killed run may have left other models
    try:
        for done, (label, turn) in enumerate(order, 1):
            folder = folders[label]
            if turn >= len(journal.times.get(label, ())):
                if not folder.is_dir():
                    build_drawn(card, skeleton, trials[label], folder, runtime)
                with EngineSession(folder, runtime, context=card.context) as engine:
                    # a thread's own CPU time is not disturbed by other processes
                    sample = engine.measure_speed(prompt, decode, options.repeats, own_time=options.threads == 1)
                journal.add(label, fastest(sample))
            if turn == options.rounds - 1:
                shutil.rmtree(folder, ignore_errors=True)
            if progress is not None:
                progress(done, len(order))
    finally:
        shutil.rmtree(models, ignore_errors=True)
    shutil.rmtree(scratch)
    return {label: journal.times[label][: options.rounds] for label in trials}


def machine() -> str:
    """The system, and the processor's name if the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.system()} {platform.machine()}" + (f", {model}" if model else "")


def shape_of(spec: TensorSpec) -> Shape:
    """Rows and columns of a tensor."""
    return spec.out_features, spec.in_features


def time_classes(table: SensitivityTable, target: Target) -> dict[Shape, list[QuantFormat]]:
    """Formats by shape that differ in time, without the base format."""
    found: dict[Shape, dict[QuantFormat, None]] = {}
    for spec in table.model.tensors:
        known = found.setdefault(shape_of(spec), {})
        for fmt in table.formats_of(spec.name):
            known.setdefault(target.timed_as(fmt))
    return {shape: [f for f in known if f != INT8.resolve(shape[1])] for shape, known in found.items()}


def uniform_trial(card: ModelCard, classes: Mapping[Shape, list[QuantFormat]], fmt: QuantFormat) -> Formats:
    """One format in every tensor whose shape is timed in it, and the base format in the others."""
    base = _uniform(card, INT8)
    return {spec.name: fmt if fmt in classes[shape_of(spec)] else base[spec.name] for spec in card.tensors}


def _uniform(card: ModelCard, fmt: QuantFormat) -> dict[str, QuantFormat]:
    return {spec.name: fmt.resolve(spec.in_features) for spec in card.tensors}


def build_drawn(card: ModelCard, skeleton: Skeleton, formats: Formats, folder: Path, runtime: RuntimeConfig) -> None:
    """Build a model of random weights.

    Raises:
        ToolError: the converter failed.
    """

    def store(name: str, fmt: QuantFormat) -> StoredTensor:
        return drawn(card.tensor(name), fmt)

    build_model(skeleton, card.tensors, formats, store, folder, runtime=runtime, replace=True)


def drawn(spec: TensorSpec, fmt: QuantFormat) -> StoredTensor:
    """A stored tensor with random values of the magnitude of weights."""
    generator = torch.Generator().manual_seed(0)
    rows, width = spec.out_features, spec.in_features
    if fmt.is_float:
        return store_float(torch.randn(rows, width, generator=generator) / math.sqrt(width), fmt)
    half = 1 << (fmt.bits - 1)
    codes = torch.randint(1, 2 * half, (rows, width), generator=generator, dtype=torch.uint8)
    blocks = width // fmt.block_size(width)
    scale = torch.full((rows, blocks), 1 / (half * math.sqrt(width)))
    return IntTensor(fmt, codes, scale, None if fmt.symmetric else torch.zeros(rows, blocks))


@alone_in_run("profile")
def run_profile(
    run: RunFolder, options: ProfileOptions, llmexport: Path | None, say: Say, progress: Progress | None = None
) -> DeviceProfile:
    """Profile a run's model and write ``device.json``.

    Raises:
        InputError: there is no analysis.
        StaleArtifactError: the model is not the one that was analyzed.
        ToolError: exporter, converter or engine failed.
    """
    table = SensitivityTable.read(run.sensitivity)
    loaded = load_analyzed(run, table.model, say).loaded
    skeleton = run_skeleton(run, loaded, llmexport, say)
    del loaded  # frees its memory for the engine
    target, scratch = find_target(DEFAULT_TARGET), run.timing
    measured = profile(table, skeleton, target, scratch=scratch, options=options, say=say, progress=progress)
    measured.write(run.device)
    return measured
