"""Measures what this machine takes for every op shape and format: whole models on the engine, one shape changed.

Weights are drawn, not quantised: their values do not change the time. Every shape is changed alone to every other
format; the sum of these changes is then held against uniform models of that format and corrected by their ratio,
so that noise and what does not add up do not accumulate. Measured: changes of single ops add up to a few percent.
"""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qplan.artifact import versions
from qplan.cost.device import DeviceProfile, OpTime
from qplan.cost.target import DEFAULT_TARGET, Target, find_target
from qplan.errors import StaleArtifactError
from qplan.formats import FP16, INT8, QuantFormat
from qplan.mnn.engine import Engine, SpeedSample
from qplan.mnn.runtime import RuntimeConfig
from qplan.mnn.skeleton import Skeleton
from qplan.mnn.writer import build_model
from qplan.model.card import ModelCard
from qplan.model.load import load_model
from qplan.pipeline.runs import Run
from qplan.pipeline.skeletons import run_skeleton
from qplan.quantize import IntTensor, StoredTensor, store_float
from qplan.sensitivity.table import SensitivityTable
from qplan.tensors import TensorSpec

Say = Callable[[str], None]
Formats = Mapping[str, QuantFormat]
Shape = tuple[int, int]

_KEEP_BYTES = 4_000_000_000
"""Built models together that are kept for further rounds; beyond, each is measured right after it is built."""
_TRUST = (0.5, 2.0)
"""Corrections by uniform models stay within these: beyond, a change is too small to be measured."""


@dataclass(frozen=True)
class ProfileOptions:
    """How thoroughly to measure."""

    threads: int = 1
    prompt_tokens: int = 128
    decode_tokens: int = 24
    repeats: int = 5
    rounds: int = 3
    """Times that every model is measured, in turn; minima count."""


@dataclass(frozen=True)
class Times:
    """Fastest times of one model."""

    prefill_ms: float
    decode_ms: float
    """Per token: the mean over positions of the fastest repeat."""

    @classmethod
    def of(cls, sample: SpeedSample) -> Times:
        """From one sample."""
        steps = np.array(sample.decode_s).reshape(len(sample.prefill_s), -1)
        return cls(1e3 * min(sample.prefill_s), 1e3 * float(steps.min(axis=0).mean()))

    def best(self, other: Times) -> Times:
        """The faster of two."""
        return Times(min(self.prefill_ms, other.prefill_ms), min(self.decode_ms, other.decode_ms))


def profile(
    table: SensitivityTable, skeleton: Skeleton, target: Target, *, scratch: Path, options: ProfileOptions, say: Say
) -> DeviceProfile:
    """Measure a model's ops on this machine.

    Args:
        table: whose formats are timed, under its memory setting.
        skeleton: the exported graph.
        target: which widths take the same time.
        scratch: folder for built models; removed in the end.
        options: how thoroughly.
        say: told what is being done.

    Raises:
        ToolError: converter or engine failed.
    """
    card = table.model
    classes = _classes(table, target)
    base = _uniform(card, INT8)
    trials: dict[str, Formats] = {"base": base}
    for fmt in dict.fromkeys(f for found in classes.values() for f in found):
        trials[f"uniform {fmt}"] = {
            spec.name: fmt if fmt in classes[_shape(spec)] else base[spec.name] for spec in card.tensors
        }
    for shape, formats in classes.items():
        for fmt in formats:
            changed = {spec.name: fmt for spec in card.tensors if _shape(spec) == shape}
            trials[f"{shape} {fmt}"] = {**base, **changed}
    times = measure_times(card, skeleton, trials, table.goal, scratch=scratch, options=options, say=say)
    return DeviceProfile(
        machine=machine(),
        engine=versions()["MNN"],
        target=target.name,
        memory=table.goal,
        threads=options.threads,
        prompt_tokens=options.prompt_tokens,
        model_sha256=card.sha256,
        base=INT8.name,
        base_prefill_ms=times["base"].prefill_ms,
        base_decode_ms=times["base"].decode_ms,
        ops=tuple(_op_times(card, classes, base, times)),
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
) -> dict[str, Times]:
    """Build models and time them in turn, several rounds; minima count.

    Raises:
        ToolError: converter or engine failed.
    """
    runtime = RuntimeConfig(memory, threads=options.threads)
    decode = max(1, min(options.decode_tokens, card.context // 4))
    prompt = max(1, min(options.prompt_tokens, card.context - decode))
    size = sum(spec.bytes_in(FP16) for spec in card.tensors) * len(trials)
    keep = size <= _KEEP_BYTES
    found: dict[str, Times] = {}
    try:
        for index in range(options.rounds if keep else 1):
            say(f"timing {len(trials)} models, round {index + 1} of {options.rounds if keep else 1}")
            for number, (label, formats) in enumerate(trials.items()):
                folder = scratch / str(number)
                if not folder.is_dir():
                    _build(card, skeleton, formats, folder, runtime)
                with Engine(folder, runtime, context=card.context) as engine:
                    time = Times.of(engine.measure_speed(prompt, decode, options.repeats))
                found[label] = found.get(label, time).best(time)
                if not keep:
                    shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def machine() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.system()} {platform.machine()}" + (f", {model}" if model else "")


def _shape(spec: TensorSpec) -> Shape:
    return spec.out_features, spec.in_features


def _classes(table: SensitivityTable, target: Target) -> dict[Shape, list[QuantFormat]]:
    """Formats of every shape that differ in time, the base's left out; a tied head has only what it may have."""
    found: dict[Shape, dict[QuantFormat, None]] = {}
    for spec in table.model.tensors:
        known = found.setdefault(_shape(spec), {})
        for fmt in table.formats_of(spec.name):
            known.setdefault(target.timed_as(fmt))
    return {shape: [f for f in known if f != INT8.resolve(shape[1])] for shape, known in found.items()}


def _uniform(card: ModelCard, fmt: QuantFormat) -> dict[str, QuantFormat]:
    return {spec.name: fmt.resolve(spec.in_features) for spec in card.tensors}


def _op_times(
    card: ModelCard,
    classes: Mapping[Shape, Sequence[QuantFormat]],
    base: Formats,
    times: Mapping[str, Times],
) -> Iterator[OpTime]:
    """Changes of every shape and format, corrected by uniform models."""
    zero = times["base"]
    formats = dict.fromkeys(fmt for found in classes.values() for fmt in found)
    for fmt in formats:
        shapes = [shape for shape, found in classes.items() if fmt in found]
        whole = times[f"uniform {fmt}"]
        changes = {shape: times[f"{shape} {fmt}"] for shape in shapes}
        prefill = _correction(
            whole.prefill_ms - zero.prefill_ms, [change.prefill_ms - zero.prefill_ms for change in changes.values()]
        )
        decode = _correction(
            whole.decode_ms - zero.decode_ms, [change.decode_ms - zero.decode_ms for change in changes.values()]
        )
        for shape, change in changes.items():
            yield OpTime(
                *shape,
                fmt.name,
                sum(_shape(spec) == shape for spec in card.tensors),
                prefill * (change.prefill_ms - zero.prefill_ms),
                decode * (change.decode_ms - zero.decode_ms),
            )
    for shape in classes:
        count = sum(_shape(spec) == shape for spec in card.tensors)
        name = next(base[spec.name].name for spec in card.tensors if _shape(spec) == shape)
        yield OpTime(*shape, name, count, 0.0, 0.0)


def _correction(whole: float, parts: Sequence[float]) -> float:
    """What makes the parts add up to the whole, if both say something."""
    total = math.fsum(parts)
    ratio = whole / total if total else 1.0
    return ratio if _TRUST[0] <= ratio <= _TRUST[1] else 1.0


def _build(card: ModelCard, skeleton: Skeleton, formats: Formats, folder: Path, runtime: RuntimeConfig) -> None:
    def source(spec: TensorSpec) -> Callable[[], StoredTensor]:
        return lambda: drawn(spec, formats[spec.name])

    tensors = {spec.op_name: source(spec) for spec in card.tensors}
    build_model(skeleton, tensors, folder, runtime=runtime, replace=True)


def drawn(spec: TensorSpec, fmt: QuantFormat) -> StoredTensor:
    """A stored tensor with drawn values of the size that weights have."""
    generator = torch.Generator().manual_seed(0)
    rows, width = spec.out_features, spec.in_features
    if fmt.is_float:
        return store_float(torch.randn(rows, width, generator=generator) / math.sqrt(width), fmt)
    half = 1 << (fmt.bits - 1)
    codes = torch.randint(1, 2 * half, (rows, width), generator=generator, dtype=torch.uint8)
    blocks = width // fmt.block_size(width)
    scale = torch.full((rows, blocks), 1 / (half * math.sqrt(width)))
    return IntTensor(fmt, codes, scale, None if fmt.symmetric else torch.zeros(rows, blocks))


def run_profile(run: Run, options: ProfileOptions, llmexport: Path | None, say: Say) -> DeviceProfile:
    """Profile a run's model and write ``device.json``.

    Raises:
        InputError: no analysis.
        StaleArtifactError: the model is not the one that was analysed.
        ToolError: exporter, converter or engine failed.
    """
    table = SensitivityTable.read(run.sensitivity)
    say(f"loading {table.model.source}")
    loaded = load_model(table.model.source)
    if loaded.card.sha256 != table.model.sha256:
        msg = f"{table.model.source} has changed since {run.sensitivity} was made; run 'qplan analyze' with --restart"
        raise StaleArtifactError(msg)
    skeleton = run_skeleton(run, loaded, llmexport, say)
    del loaded  # its memory is better left to the engine
    target, scratch = find_target(DEFAULT_TARGET), run.folder / "profile"
    measured = profile(table, skeleton, target, scratch=scratch, options=options, say=say)
    measured.write(run.device)
    return measured
