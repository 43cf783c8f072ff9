"""Measures engines: every exporter, option and converter, and every way in which qplan builds, on every release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from qplan.artifact import temporary_folder
from qplan.compat.table import Cell, shown_error, today
from qplan.errors import ToolError
from qplan.formats import FP16, QuantFormat
from qplan.mnn.build.exporter import export, export_skeleton
from qplan.mnn.build.exporter_source import ExportOptions, find_exporter
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.probe import Outcome, run_probe
from qplan.mnn.engine.venv import EngineVenv, released
from qplan.mnn.engines import EngineVersion
from qplan.mnn.graph.tie import TieForm
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.model.specimen import save_specimen, token_ids
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.kept_logits import Logits
from qplan.settings import Say
from qplan.verify.reference import stored_logits

MODELS = ("qwen2", "llama")
"""Specimens of the table of engines: a tied embedding with biases, an untied one."""

LIMITS = {"normal": 1e-3, "low": 0.15}
"""Largest relative error that counts as right: float rounding, and int8 activations on a random model."""

TOKENS = 48
"""Length of the sequence that every engine is given."""


@dataclass(frozen=True)
class Build:
    """A way in which qplan builds a model."""

    options: str
    format: str
    c4: bool
    tie_form: TieForm


BUILDS = (
    Build("fp16", "fp16", c4=True, tie_form="dict"),
    Build("fp16, no C4", "fp16", c4=False, tie_form="list"),
    Build("int8", "int8-b32", c4=True, tie_form="dict"),
    Build("int8, no C4", "int8-b32", c4=False, tie_form="dict"),
    Build("int8, 32-bit scales, no C4", "int8-b32-s32", c4=False, tie_form="dict"),
    Build("int8, 32-bit scales, no C4, tie list", "int8-b32-s32", c4=False, tie_form="list"),
    Build("int4, 32-bit scales, no C4, tie list", "int4-b32-s32", c4=False, tie_form="list"),
    Build("int4 symmetric, 32-bit scales, no C4, tie list", "int4-b32-sym-s32", c4=False, tie_form="list"),
    Build("int6, 32-bit scales, no C4, tie list", "int6-b32-s32", c4=False, tie_form="list"),
    Build("int5, 32-bit scales, no C4, tie list", "int5-b32-s32", c4=False, tie_form="list"),
    Build("int3, 32-bit scales, no C4, tie list", "int3-b32-s32", c4=False, tie_form="list"),
)
"""A tied head stays at 8 bits where it cannot have the width."""

_HALF, _FULL = QuantFormat(8, 32), QuantFormat(8, 32, scale_bits=32)

EXPORTS = {
    "--quant_bit 16": (ExportOptions(), FP16),
    "--quant_bit 8 --quant_block 32": (ExportOptions(8, 32), _FULL),
    "--quant_bit 4 --quant_block 32": (ExportOptions(4, 32), QuantFormat(4, 32, scale_bits=32)),
}
"""Options of llmexport from PyPI, and the format that every linear then has."""

CHECKOUT_EXPORTS = {
    "--quant_bit 16": (ExportOptions(), FP16),
    "--quant_bit 16 --disable_transformer_c4": (ExportOptions(c4=False), FP16),
    "--quant_bit 8 --quant_block 32": (ExportOptions(8, 32), _HALF),
    "--quant_bit 8 --quant_block 32 --disable_transformer_c4": (ExportOptions(8, 32, c4=False), _HALF),
    "--quant_bit 8 --quant_block 32 --disable_transformer_c4 --scale_bit 32": (
        ExportOptions(8, 32, scale_bits=32, c4=False),
        _FULL,
    ),
}
"""The same for an MNN checkout, which stores scales in 16 bits unless told otherwise."""


def measure_engines(
    venvs: Path, say: Say, engines: tuple[EngineVersion, ...] | None = None, llmexport: Path | None = None
) -> Iterator[Cell]:
    """Measure every way to make a model on every engine, each in its own child process.

    Args:
        venvs: folder of virtual environments; missing ones are made.
        say: called with a line about each step.
        engines: versions; None for all that pip finds.
        llmexport: an MNN checkout, whose exporter is then measured alone, with the installed converter: it knows
            options that older converters do not.

    Raises:
        ToolError: pip failed.
    """
    homes = [EngineVenv.of(engine, venvs) for engine in engines or released()]
    for home in homes:
        home.make(say)
    with temporary_folder("compat") as temporary:
        work = Path(temporary)
        for name in MODELS:
            loaded = load_model(str(save_specimen(name, work / name)))
            exports = _exports(work, name, loaded, homes, llmexport=llmexport, say=say)
            builds = _builds(work, name, loaded, say) if llmexport is None else ()
            for made in chain(exports, builds):
                yield from _on_engines(made, homes, say)


@dataclass(frozen=True)
class _MadeModel:
    """A model folder, and what it should compute."""

    model: str
    exporter: str
    options: str
    converter: str
    folder: Path | None
    """None if it could not be made."""
    expected: Logits | None
    failure: str = ""


def _exports(
    work: Path, name: str, loaded: LoadedModel, homes: list[EngineVenv], *, llmexport: Path | None, say: Say
) -> Iterator[_MadeModel]:
    exporter = find_exporter(llmexport)
    converters: dict[str, Path | None] = {version("MNN"): None}
    if llmexport is None:
        converters = {str(home.version): _shim(work, home) for home in homes}
    for converter, shim in converters.items():
        for options, (arguments, fmt) in (CHECKOUT_EXPORTS if exporter.has_c4_option else EXPORTS).items():
            say(f"{name}: {exporter.version} {options}, converter {converter}")
            out = work / f"{name}-{converter}-{options.replace(' ', '')}"
            try:
                export(work / name, out, arguments, converter=shim, llmexport=llmexport)
            except ToolError as error:
                failure = error.tail.strip().rpartition("\n")[2][:200]
                yield _MadeModel(name, exporter.version, options, converter, None, None, failure)
                continue
            formats = {spec.name: fmt for spec in loaded.card.tensors}
            yield _MadeModel(name, exporter.version, options, converter, out, _stored(loaded, formats))


def _shim(work: Path, home: EngineVenv) -> Path:
    shim = work / f"converter-{home.version}"
    return shim if shim.exists() else home.converter(shim)


def _builds(work: Path, name: str, loaded: LoadedModel, say: Say) -> Iterator[_MadeModel]:
    skeletons: dict[bool, Skeleton] = {}
    for build in BUILDS:
        say(f"{name}: qplan {build.options}")
        if build.c4 not in skeletons:
            out = work / f"{name}-skeleton-{build.c4}"
            skeletons[build.c4] = export_skeleton(work / name, out, c4=build.c4)
        skeleton = skeletons[build.c4]
        formats = _build_formats(loaded, skeleton, QuantFormat.parse(build.format))
        out = work / f"{name}-{build.options}"
        build_model(skeleton, loaded.card.tensors, formats, Rounder(loaded).store, out, tie_form=build.tie_form)
        yield _MadeModel(name, "qplan", build.options, version("MNN"), out, _stored(loaded, formats))


def _build_formats(loaded: LoadedModel, skeleton: Skeleton, fmt: QuantFormat) -> dict[str, QuantFormat]:
    head = fmt if fmt.can_be_looked_up else QuantFormat(8, fmt.block, scale_bits=fmt.scale_bits)
    return {spec.name: head if spec.op_name == skeleton.tied_op else fmt for spec in loaded.card.tensors}


def _stored(loaded: LoadedModel, formats: Mapping[str, QuantFormat]) -> Logits:
    return stored_logits(Rounder(loaded), formats, token_ids(TOKENS))


def _on_engines(made: _MadeModel, homes: list[EngineVenv], say: Say) -> Iterator[Cell]:
    for home in homes:
        for memory, limit in LIMITS.items():
            outcome: Outcome = "export fails"
            error: float | None = None
            detail = made.failure
            if made.folder is not None and made.expected is not None:
                ran = run_probe(made.folder, token_ids(TOKENS), RuntimeConfig(memory), host=home.host)
                outcome, error = ran.judged(made.expected, limit)
                detail = ran.detail
            cell = Cell(
                model=made.model,
                exporter=made.exporter,
                options=made.options,
                converter=made.converter,
                engine=str(home.version),
                memory=memory,
                outcome=outcome,
                error=shown_error(error),
                detail=detail,
                date=today(),
            )
            say(f"  engine {home.version}, memory {memory}: {outcome} {'' if error is None else f'{error:.1e}'}")
            yield cell
