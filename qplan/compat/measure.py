"""Measures the compatibility table: exporters and their options, converters, engines, architectures."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from qplan.compat.table import ArchitectureCell, Cell, CompatTable
from qplan.errors import QplanError, ToolError
from qplan.formats import FP16, QuantFormat
from qplan.mnn.build.exporter import export, export_skeleton
from qplan.mnn.build.exporter_source import ExportOptions, find_exporter
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.tie import TieForm
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.probe import Outcome, run_probe
from qplan.mnn.engine.venv import EngineVenv, released
from qplan.mnn.engines import EngineVersion
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.model.specimen import save_specimen
from qplan.model.specimen_sizes import SPECIMENS, VOCABULARY, check_architectures
from qplan.quantize.rounder import Rounder
from qplan.settings import Say
from qplan.verify.reference import stored_logits

Logits = NDArray[np.float32]

MODELS = ("qwen2", "llama")
"""Specimens of the table of engines: a tied embedding with biases, an untied one."""

LIMITS = {"normal": 1e-3, "low": 0.15}
"""Largest relative error that counts as right: float rounding, and int8 activations on a random model."""

ARCHITECTURE_LIMIT = 1e-3
"""Of an fp16 export against torch with the matrices rounded as the export stores them."""

TOKENS = (48, 200)
"""Lengths of sequences for architectures: within and beyond the windows and rotations of the specimens."""


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
"""Widths that a tied head cannot have leave it at 8 bits."""

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
    """Every way to make a model, on every engine, in a child process each.

    Args:
        venvs: folder of virtual environments, which are made there if they are not.
        say: told what is being done.
        engines: versions; None for all that pip finds.
        llmexport: an MNN checkout, whose exporter is then measured alone, with the installed converter: it knows
            options that older converters do not.

    Raises:
        ToolError: pip failed.
    """
    homes = [EngineVenv(engine, venvs / str(engine)) for engine in engines or released()]
    for home in homes:
        home.make(say)
    with tempfile.TemporaryDirectory(prefix="qplan-compat-") as temporary:
        work = Path(temporary)
        for name in MODELS:
            loaded = load_model(str(save_specimen(name, work / name)))
            exports = _exports(work, name, loaded, homes, llmexport=llmexport, say=say)
            builds = _builds(work, name, loaded, say) if llmexport is None else ()
            for made in chain(exports, builds):
                yield from _on_engines(made, homes, say)


@dataclass(frozen=True)
class _Made:
    """A model folder, and what it should compute."""

    model: str
    exporter: str
    options: str
    converter: str
    folder: Path | None
    """None if it could not be made."""
    expected: Logits | None
    failure: str = ""


def token_ids(count: int) -> list[int]:
    """Tokens for specimens."""
    return [int(token) for token in np.random.default_rng(0).integers(1, VOCABULARY, count)]


def _exports(
    work: Path, name: str, loaded: LoadedModel, homes: list[EngineVenv], *, llmexport: Path | None, say: Say
) -> Iterator[_Made]:
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
                yield _Made(name, exporter.version, options, converter, None, None, failure)
                continue
            formats = {spec.name: fmt for spec in loaded.card.tensors}
            yield _Made(name, exporter.version, options, converter, out, _stored(loaded, formats))


def _shim(work: Path, home: EngineVenv) -> Path:
    shim = work / f"converter-{home.version}"
    return shim if shim.exists() else home.converter(shim)


def _builds(work: Path, name: str, loaded: LoadedModel, say: Say) -> Iterator[_Made]:
    skeletons = {c4: export_skeleton(work / name, work / f"{name}-skeleton-{c4}", c4=c4) for c4 in (True, False)}
    for build in BUILDS:
        say(f"{name}: qplan {build.options}")
        skeleton = skeletons[build.c4]
        formats = _build_formats(loaded, skeleton, QuantFormat.parse(build.format))
        out = work / f"{name}-{build.options}"
        rounder = Rounder(loaded)
        tensors = {spec.op_name: rounder.store(spec.name, formats[spec.name]) for spec in loaded.card.tensors}
        build_model(skeleton, tensors, out, tie_form=build.tie_form)
        yield _Made(name, "qplan", build.options, version("MNN"), out, _stored(loaded, formats))


def _build_formats(loaded: LoadedModel, skeleton: Skeleton, fmt: QuantFormat) -> dict[str, QuantFormat]:
    head = fmt if fmt.bits in {4, 8, 16} else QuantFormat(8, fmt.block, scale_bits=fmt.scale_bits)
    return {spec.name: head if spec.op_name == skeleton.tied_op else fmt for spec in loaded.card.tensors}


def _stored(loaded: LoadedModel, formats: Mapping[str, QuantFormat]) -> Logits:
    return stored_logits(Rounder(loaded), formats, token_ids(TOKENS[0]))


def _on_engines(made: _Made, homes: list[EngineVenv], say: Say) -> Iterator[Cell]:
    for home in homes:
        for memory, limit in LIMITS.items():
            outcome: Outcome = "export fails"
            error: float | None = None
            detail = made.failure
            if made.folder is not None and made.expected is not None:
                ran = run_probe(made.folder, token_ids(TOKENS[0]), RuntimeConfig(memory), python=home.python)
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
                error=None if error is None else float(f"{error:.3g}"),
                detail=detail,
                date=today(),
            )
            say(f"  engine {home.version}, memory {memory}: {outcome} {'' if error is None else f'{error:.1e}'}")
            yield cell


def measure_architectures(
    say: Say, names: tuple[str, ...] = tuple(SPECIMENS), llmexport: Path | None = None
) -> Iterator[ArchitectureCell]:
    """Every specimen at fp16 on the installed engine, against the Hugging Face model in FP32.

    Args:
        say: told what is being done.
        names: of `SPECIMENS`.
        llmexport: another exporter than the installed package.

    Raises:
        InputError: no such specimen.
    """
    check_architectures(names)
    exporter = find_exporter(llmexport).version
    for name in names:
        with tempfile.TemporaryDirectory(prefix="qplan-compat-") as temporary:
            work = Path(temporary)
            folder, failure = work / "mnn", ""
            try:
                save_specimen(name, work / "hf")
                export(work / "hf", folder, ExportOptions(), llmexport=llmexport)
            except (QplanError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
                failure = str(getattr(error, "tail", "") or error).strip().rpartition("\n")[2][:200]
            for tokens in TOKENS:
                outcome: Outcome = "export fails"
                error_: float | None = None
                detail = failure
                if not failure:
                    outcome, error_, detail = _against_torch(work / "hf", folder, token_ids(tokens))
                shown = detail if error_ is None else f"{error_:.1e}"
                say(f"{name}, {tokens} tokens: {outcome} {shown}")
                yield ArchitectureCell(
                    architecture=name,
                    exporter=exporter,
                    transformers=version("transformers"),
                    engine=version("MNN"),
                    tokens=tokens,
                    outcome=outcome,
                    error=None if error_ is None else float(f"{error_:.3g}"),
                    detail=detail,
                    date=today(),
                )


def _against_torch(model: Path, folder: Path, ids: list[int]) -> tuple[Outcome, float | None, str]:
    torch_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        _round_as_exported(torch_model)
        expected: Logits = torch_model(torch.tensor([ids])).logits[0].numpy()
    ran = run_probe(folder, ids, RuntimeConfig("normal"))
    outcome, error = ran.judged(expected, ARCHITECTURE_LIMIT)
    return outcome, error, ran.detail


def _round_as_exported(model: Any) -> None:  # noqa: ANN401 - a PreTrainedModel
    """Matrices become halves; an untied embedding is stored as bfloat16."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter is not embedding:
            parameter.copy_(parameter.half().float())
    kept = torch.float16 if embedding is head else torch.bfloat16
    embedding.copy_(embedding.to(kept).float())


def today() -> str:
    """The date, UTC."""
    return datetime.now(UTC).date().isoformat()


def merged(table: CompatTable | None, cells: list[Cell], architectures: list[ArchitectureCell]) -> CompatTable:
    """A table with new measurements in place of its own of the same models, options, engines and architectures."""
    old = table if table is not None else CompatTable("", (), ())
    by_cell = {_place(cell): cell for cell in (*old.cells, *cells)}
    by_architecture = {(cell.architecture, cell.exporter, cell.tokens): cell for cell in old.architectures}
    by_architecture |= {(cell.architecture, cell.exporter, cell.tokens): cell for cell in architectures}
    order = list(SPECIMENS)
    ordered = sorted(by_architecture.values(), key=lambda cell: (order.index(cell.architecture), cell.tokens))
    return CompatTable(platform.machine(), tuple(by_cell.values()), tuple(ordered))


def _place(cell: Cell) -> tuple[str, ...]:
    return (cell.model, cell.exporter, cell.options, cell.converter, cell.engine, cell.memory)
