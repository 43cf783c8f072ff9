"""``quant_config.json`` for llmexport, for those who want to run the export themselves."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import write_text
from qplan.errors import InputError
from qplan.formats import FP16, QuantFormat
from qplan.mnn.build.exporter_source import Exporter, ExportOptions
from qplan.mnn.build.skeleton import Skeleton

ConfigEntry = dict[str, int | bool]
"""``bits``, ``block_size``, ``symmetric`` of one op."""


@dataclass(frozen=True)
class QuantConfig:
    """A plan as llmexport's ``--quant_config``, and what that exporter would get wrong."""

    entries: dict[str, ConfigEntry]
    """By op name; every op of the model is named, so that nothing falls back to a default."""
    problems: tuple[str, ...]
    """One sentence for each thing that this exporter cannot make, or makes differently from qplan."""

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write_text(path, json.dumps(self.entries, indent=1) + "\n")


def make_quant_config(skeleton: Skeleton, formats: Mapping[str, QuantFormat], exporter: Exporter) -> QuantConfig:
    """Turn formats by op name into ``--quant_config``.

    llmexport silently ignores a name that matches no op, so every name is checked against the skeleton's graph.

    Raises:
        InputError: a name is no op, an op has no name, or a format is fp32.
    """
    skeleton.check_names(formats)
    return quant_config_of({op.name: op.in_features for op in skeleton.ops}, formats, exporter)


def quant_config_of(widths: Mapping[str, int], formats: Mapping[str, QuantFormat], exporter: Exporter) -> QuantConfig:
    """The same where no graph is at hand to check names against.

    Args:
        widths: weights of a row by op name, for every op of the model.
        formats: by op name.
        exporter: the copy of llmexport.

    Raises:
        InputError: a format is fp32.
    """
    resolved = {name: formats[name].resolve(width) for name, width in widths.items()}
    for name, fmt in resolved.items():
        if fmt.bits == 32:
            msg = f"{name}: llmexport cannot keep a single op in fp32; use fp16"
            raise InputError(msg)
    return QuantConfig({name: _entry(fmt) for name, fmt in resolved.items()}, _problems(resolved, exporter))


def export_command(
    exporter: Exporter,
    model: Path,
    out: Path,
    quant_config: Path,
    formats: Mapping[str, QuantFormat],
    *,
    embedding: QuantFormat = FP16,
) -> str:
    """The command line that exports ``model`` with a plan's ``quant_config.json``, ready for a shell.

    Args:
        exporter: the copy of llmexport.
        model: the Hugging Face folder.
        out: folder to export to.
        quant_config: the file.
        formats: by op name.
        embedding: of an untied embedding.

    Raises:
        InputError: this exporter has no ``--quant_config``.
    """
    integers = [fmt for fmt in formats.values() if not fmt.is_float]
    options = ExportOptions(
        symmetric=_symmetry(formats),
        scale_bits=max((fmt.scale_bits for fmt in integers), default=16) if exporter.has_scale_bit else None,
        quant_config=quant_config,
        block=embedding.block if _exports(exporter, embedding) else ExportOptions.block,
        others=("--embed_bit", str(embedding.bits)) if _exports(exporter, embedding) else (),
    )
    return shlex.join([Path(sys.executable).name, str(exporter.script), *options.arguments(exporter, model, out)])


def embedding_problem(
    exporter: Exporter, formats: Mapping[str, QuantFormat], embedding: QuantFormat
) -> tuple[str, ...]:
    """What this exporter makes of an untied embedding in a format, if something else."""
    if embedding.is_float:
        return ()
    if _exports(exporter, embedding):
        symmetric = f"{exporter.version} stores the embedding without zero points, as --sym asks for all"
        return (f"{symmetric}; the built model is not affected",) if _symmetry(formats) else ()
    msg = f"{exporter.version} has no --embed_bit: it exports the embedding as bfloat16, the plan has {embedding}; "
    return (msg + "the built model is not affected",)


def _exports(exporter: Exporter, embedding: QuantFormat) -> bool:
    """Whether it stores an embedding as integers: in the blocks of ``--quant_block``, which every op overrides."""
    return exporter.has_embed_bit and not embedding.is_float


def _entry(fmt: QuantFormat) -> ConfigEntry:
    if fmt.is_float:
        return {"bits": fmt.bits}
    return {"bits": fmt.bits, "block_size": fmt.block, "symmetric": fmt.symmetric}


def _symmetry(formats: Mapping[str, QuantFormat]) -> bool:
    """The right value of ``--sym`` for exporters that look at nothing else."""
    integers = [fmt.symmetric for fmt in formats.values() if not fmt.is_float]
    return bool(integers) and all(integers)


def _problems(formats: Mapping[str, QuantFormat], exporter: Exporter) -> tuple[str, ...]:
    integers = {name: fmt for name, fmt in formats.items() if not fmt.is_float}
    unpackable = {name: fmt for name, fmt in integers.items() if fmt.bits not in exporter.packable_bits}
    found: list[str] = []
    if unpackable:
        name, fmt = next(iter(unpackable.items()))
        found.append(
            f"{exporter.version} can only pack {exporter.packable_bits} bits and stops at {len(unpackable)} ops, "
            f"first {name} ({fmt}); the built model is not affected"
        )
    odd = {name for name, fmt in integers.items() if fmt.symmetric != _symmetry(formats)}
    if odd and exporter.symmetry_is_global:
        found.append(
            f"{exporter.version} declares every op by --sym alone: {len(odd)} ops would be broken, "
            f"first {min(odd)}; use one symmetry or an MNN checkout; the built model is right"
        )
    scales = {fmt.scale_bits for fmt in integers.values()}
    if not exporter.has_scale_bit and 16 in scales:
        found.append(f"{exporter.version} stores scales in 32 bits where the plan counts 16; its file is larger")
    if exporter.has_scale_bit and len(scales) > 1:
        found.append(f"{exporter.version} has one --scale_bit for all ops; the plan mixes 16 and 32")
    return tuple(found)
