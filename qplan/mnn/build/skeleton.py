"""An exported folder as the starting point of every build: what is fixed in it, and what a plan will make of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import read_json, write_json
from qplan.cost.file_bytes import FileBytes
from qplan.errors import InputError
from qplan.formats import FP32, QuantFormat
from qplan.mnn.files import (
    CONFIG_FILE,
    EMBEDDING_FILE,
    EMBEDDING_FILES,
    GRAPH_FILE,
    GRAPH_JSON_FILE,
    LLM_CONFIG_FILE,
    WEIGHT_FILE,
)
from qplan.mnn.graph.binary import BinaryGraph, read_binary_graph
from qplan.mnn.graph.linear import Linear, declaration_bytes
from qplan.mnn.graph.patch import rebuilt_bytes
from qplan.mnn.graph.tie import TIE_KEY, read_tie

REQUIRED_FILES = (GRAPH_FILE, GRAPH_JSON_FILE, WEIGHT_FILE, LLM_CONFIG_FILE, CONFIG_FILE)
MARKER, MARKER_KIND, MARKER_SCHEMA = "qplan-export.json", "qplan-mnn-export", 1


@dataclass(frozen=True)
class FixedRange:
    """Bytes of the weight file that no plan changes: a norm or a constant."""

    offset: int
    length: int


@dataclass(frozen=True)
class Skeleton:
    """An exported model folder, at any width."""

    folder: Path
    ops: tuple[Linear, ...]
    """Every linear, in graph order: a build needs a tensor for each."""
    fixed: tuple[FixedRange, ...]
    """The other ranges of the weight file, by offset."""
    tied_op: str | None
    """Name of the op whose bytes are also the input embedding; None if untied."""
    embedding_bytes: int
    """Size of ``embeddings_bf16.bin``; 0 if tied."""
    graph_bytes: int
    """Size of the graph file when qplan builds it at the export's own formats."""
    exporter: str
    """What made it, e.g. ``llmexport 0.0.5``; ``unknown`` if not exported by qplan."""
    whole: bool = True
    """Whether its weight file holds the linears' matrices, and not holes in their place."""

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the weight file outside of the linears' weights, scales and biases."""
        return sum(part.length for part in self.fixed)

    @property
    def tied(self) -> bool:
        """Whether head and input embedding are one matrix."""
        return self.tied_op is not None

    def op(self, name: str) -> Linear:
        """Look a linear up by its name.

        Raises:
            InputError: no such op.
        """
        for op in self.ops:
            if op.name == name:
                return op
        msg = f"the model in {self.folder} has no op {name!r}; its first is {self.ops[0].name!r}"
        raise InputError(msg)

    def check_names(self, names: Mapping[str, object]) -> None:
        """Check that every op is named, and nothing else.

        Raises:
            InputError: an op has no name, or a name matches no op; lists both.
        """
        known = {op.name for op in self.ops}
        missing, extra = sorted(known - set(names)), sorted(set(names) - known)
        if missing or extra:
            parts = [f"{len(missing)} ops have none: {', '.join(missing[:8])}"] if missing else []
            parts += [f"{len(extra)} names match no op: {', '.join(extra[:8])}"] if extra else []
            msg = f"every linear of {self.folder} needs one entry; {'; '.join(parts)}"
            raise InputError(msg)

    @classmethod
    def open(cls, folder: Path) -> Skeleton:
        """Read an exported folder.

        Raises:
            InputError: not an exported folder, or one whose weight file holds bytes that no op claims.
        """
        absent = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
        if absent:
            msg = f"{folder} is not an exported MNN model: no {', '.join(absent)}; export it again"
            raise InputError(msg)
        graph = read_binary_graph(folder / GRAPH_FILE)
        ops = graph.linears
        fixed = {FixedRange(ranges[0], sum(ranges[1:])) for ranges in graph.other_ranges}
        exporter, graph_bytes, whole = _marker(folder, graph)
        skeleton = cls(
            folder=folder,
            ops=ops,
            fixed=tuple(sorted(fixed, key=lambda part: part.offset)),
            tied_op=_tied_op(folder, ops),
            embedding_bytes=_size(folder / EMBEDDING_FILE),
            graph_bytes=graph_bytes,
            exporter=exporter,
            whole=whole,
        )
        _check_tiling(skeleton)
        return skeleton


def predict_files(skeleton: Skeleton, formats: Mapping[str, QuantFormat]) -> FileBytes:
    """Sizes of the files that a build with these formats will have.

    Weights and embedding are exact. The graph is within 1 %: a linear's parameters take a few dozen bytes.

    Args:
        skeleton: the exported model.
        formats: format by op name, for every op.

    Raises:
        InputError: an op has no name, or a name matches no op.
    """
    skeleton.check_names(formats)
    weight, graph = skeleton.fixed_bytes, skeleton.graph_bytes
    for op in skeleton.ops:
        fmt = formats[op.name].resolve(op.in_features)
        graph += declaration_bytes(fmt, op.name) - declaration_bytes(op.format, op.name)
        # floats always have a bias, and a tied head in fp32 is looked up in fp16: see weights.py
        weight += fmt.record_bytes(op.out_features, op.in_features, bias=op.bias or fmt == FP32)
        if fmt == FP32 and op.name == skeleton.tied_op:
            weight += 2 * op.out_features * op.in_features
    return FileBytes(weight=weight, embedding=skeleton.embedding_bytes, graph=graph)


def folder_bytes(folder: Path) -> FileBytes:
    """Sizes of the files that ship, as they are."""
    embedding = sum(_size(folder / name) for name in EMBEDDING_FILES.values())
    return FileBytes(weight=_size(folder / WEIGHT_FILE), embedding=embedding, graph=_size(folder / GRAPH_FILE))


def write_marker(folder: Path, exporter: str, *, whole: bool) -> None:
    """Record in an export what made it, whether it holds all weights, and the size of the graph that qplan makes."""
    graph = read_binary_graph(folder / GRAPH_FILE)
    body = {"exporter": exporter, "graph_bytes": rebuilt_bytes(folder, graph), "whole": whole}
    write_json(folder / MARKER, MARKER_KIND, MARKER_SCHEMA, {}, body)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _marker(folder: Path, graph: BinaryGraph) -> tuple[str, int, bool]:
    """Exporter, graph bytes, measured now if qplan did not export the folder, and whether all weights are there."""
    if not (folder / MARKER).is_file():
        return "unknown", rebuilt_bytes(folder, graph), True
    marker = read_json(folder / MARKER, MARKER_KIND, MARKER_SCHEMA)
    return str(marker["exporter"]), int(marker["graph_bytes"]), bool(marker.get("whole", True))


def _tied_op(folder: Path, ops: tuple[Linear, ...]) -> str | None:
    try:
        tie = read_tie(json.loads((folder / LLM_CONFIG_FILE).read_text(encoding="utf-8")))
    except (ValueError, InputError) as error:
        msg = f"{folder / LLM_CONFIG_FILE}: {TIE_KEY}: {error}; export the model again"
        raise InputError(msg) from None
    if tie is None:
        return None
    offset = tie.weight_offset
    for op in ops:
        if op.record.offset <= offset < op.record.offset + op.record.weight:
            return op.name
    msg = f"{folder}: tie_embeddings points to byte {offset}, which belongs to no op; export the model again"
    raise InputError(msg)


def _check_tiling(skeleton: Skeleton) -> None:
    """Every byte of the weight file must be claimed once, or a build would lose it."""
    ranges = [(part.offset, part.length) for part in skeleton.fixed]
    ranges += [(op.record.offset, op.record.total) for op in skeleton.ops]
    end = 0
    for offset, length in sorted(ranges):
        if offset != end:
            break
        end = offset + length
    size = _size(skeleton.folder / WEIGHT_FILE)
    if end != size:
        msg = f"{skeleton.folder / WEIGHT_FILE}: bytes {end} to {size} are laid out in a way that qplan does not know; "
        raise InputError(msg + "it was not made by llmexport, or has parts that other graphs use")
