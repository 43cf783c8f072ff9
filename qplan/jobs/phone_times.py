"""A device profile of another device: models to time there, and the table of MNN's ``llm_bench`` that comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from qplan.artifact import read_bounded
from qplan.cost.llm_bench import BenchTable, read_bench_table
from qplan.cost.target import Target, find_target
from qplan.cost.times import Shape, changes_by_weights
from qplan.errors import InputError
from qplan.folding.analyzed import load_analyzed
from qplan.formats import INT8, QuantFormat
from qplan.jobs.profile import build_drawn, op_times, shape_of, time_classes, uniform_trial
from qplan.jobs.skeletons import run_skeleton
from qplan.mnn.runtime import RuntimeConfig
from qplan.run.folder import RunFolder
from qplan.run.lock import alone_in_run
from qplan.run.profile import DeviceProfile, TimedModel
from qplan.run.table import SensitivityTable
from qplan.settings import Progress, Say

_MOST_BYTES = 1 << 20
"""Of a table that people copy."""

_UNTOLD = "not told by llm_bench"
"""In place of a version of MNN."""


@alone_in_run("profile")
def build_timed_models(
    run: RunFolder,
    out: Path,
    target_name: str,
    *,
    llmexport: Path | None,
    say: Say,
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Build the models that a device is timed with, one in each format; their weights are random.

    Args:
        run: a finished analysis, whose formats are timed.
        out: folder for them, which must not exist; each is named after its format.
        target_name: the device's kind of processor.
        llmexport: MNN checkout whose exporter to use; None for the PyPI package.
        say: called with a line about each step.
        progress: called with the models that are built.

    Raises:
        InputError: there is no analysis, or the folder is there.
        StaleArtifactError: the model is not the one that was analyzed.
        ToolError: exporter or converter failed.
    """
    if out.exists():
        msg = f"--models {out} exists; name a new folder"
        raise InputError(msg)
    table, target = SensitivityTable.read(run.sensitivity), find_target(target_name)
    loaded = load_analyzed(run, table.model, say).loaded
    skeleton = run_skeleton(run, loaded, llmexport, say)
    del loaded  # frees its memory
    classes = _classes(table, target)
    found = []
    wanted = _timed(classes)
    for number, fmt in enumerate(wanted, 1):
        folder = out / fmt.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        build_drawn(table.model, skeleton, uniform_trial(table.model, classes, fmt), folder, RuntimeConfig(table.goal))
        found.append(folder)
        if progress is not None:
            progress(number, len(wanted))
    return tuple(found)


@alone_in_run("profile")
def import_profile(run: RunFolder, source: Path, target_name: str) -> DeviceProfile:
    """Read llm_bench's table of those models, and write ``device.json``.

    All tensors of a format get the same time per weight: whole models do not tell shapes apart.

    Args:
        run: the analysis that the models were built from.
        source: text file with the table; its name becomes the device's.
        target_name: the device's kind of processor.

    Raises:
        InputError: no analysis, no such file, or a table that does not give every format's time.
    """
    table, target = SensitivityTable.read(run.sensitivity), find_target(target_name)
    try:
        text = read_bounded(source, _MOST_BYTES).decode("utf-8")
        bench = read_bench_table(text)
        measured = _profile(bench, table, target, source.stem)
    except UnicodeDecodeError as error:
        msg = f"--from {source}: not UTF-8 at byte {error.start}; save it as UTF-8"
        raise InputError(msg) from None
    except InputError as error:
        msg = f"--from {source}: {error}"
        raise InputError(msg) from None
    measured.write(run.device)
    return measured


def _profile(bench: BenchTable, table: SensitivityTable, target: Target, device: str) -> DeviceProfile:
    classes, card = _classes(table, target), table.model
    _check_settings(bench, table)
    wanted = _timed(classes)
    _check_models(bench, wanted)
    times = {fmt: bench.models[fmt.name] for fmt in wanted}
    counts = Counter(shape_of(spec) for spec in card.tensors)
    prefill, decode = (
        changes_by_weights(classes, counts, INT8, {fmt: getattr(t, kind) for fmt, t in times.items()})
        for kind in ("prefill_ms", "decode_ms")
    )
    return DeviceProfile(
        machine=device,
        engine=_UNTOLD,
        target=target.name,
        memory=bench.memory,
        threads=bench.threads,
        prompt_tokens=bench.prompt_tokens,
        model_sha256=card.sha256,
        base=INT8.name,
        base_prefill_ms=times[INT8].prefill_ms,
        base_decode_ms=times[INT8].decode_ms,
        ops=op_times(classes, counts, prefill, decode),
        models=tuple(TimedModel(f"uniform {fmt}", t.prefill_ms, t.decode_ms) for fmt, t in times.items()),
    )


def _classes(table: SensitivityTable, target: Target) -> dict[Shape, list[QuantFormat]]:
    """Formats by shape that differ in time and that plans may have on the target, without the base format."""
    legal: dict[Shape, set[QuantFormat]] = {}
    for spec in table.model.tensors:
        allowed = {target.timed_as(fmt) for fmt in table.formats_of(spec.name) if target.legal(spec, fmt)}
        legal.setdefault(shape_of(spec), set()).update(allowed)
    found = time_classes(table, target)
    return {shape: [fmt for fmt in formats if fmt in legal[shape]] for shape, formats in found.items()}


def _timed(classes: Mapping[Shape, list[QuantFormat]]) -> tuple[QuantFormat, ...]:
    """The formats of the uniform models: the base, then the others."""
    return tuple(dict.fromkeys((INT8, *(fmt for formats in classes.values() for fmt in formats))))


def _check_settings(bench: BenchTable, table: SensitivityTable) -> None:
    """Refuse times of other arithmetic than plans are made for.

    Raises:
        InputError: another back end, or another memory setting.
    """
    if bench.backend != "CPU":
        msg = f"back end {bench.backend}: plans are for MNN's CPU back end; run llm_bench with -a cpu"
        raise InputError(msg)
    if bench.memory != table.goal:
        msg = f"memory {bench.memory}, and the run is for memory {table.goal}; analyze with --memory {bench.memory}"
        raise InputError(msg)


def _check_models(bench: BenchTable, wanted: tuple[QuantFormat, ...]) -> None:
    names = [fmt.name for fmt in wanted]
    missing = [name for name in names if name not in bench.models]
    if missing:
        msg = (
            f"no row of {', '.join(missing)}, and the run has these formats; time the folders that "
            f"'qplan profile --models FOLDER' builds, whose names llm_bench prints. It has {', '.join(bench.models)}"
        )
        raise InputError(msg)
