"""The graph of a model folder as qplan needs it: its linears, and which bytes of the weight file belong to whom."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.mnn.graph.converter import graph_to_json

GRAPH_FILE, GRAPH_JSON_FILE, WEIGHT_FILE = "llm.mnn", "llm.mnn.json", "llm.mnn.weight"

EXPERT_PREFIX = "/expert/"
"""Of the names of graphs, and of their ops, that belong to single experts."""

Node = dict[str, Any]
"""One op of the JSON graph."""


@dataclass(frozen=True)
class Record:
    """Where a linear's bytes lie in ``llm.mnn.weight``: weights, then scales, then bias."""

    offset: int
    weight: int
    """Bytes of the header and the packed weights."""
    alpha: int
    """Bytes of the scales and zero points."""
    bias: int
    """Bytes of the fp32 bias."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.weight + self.alpha + self.bias


@dataclass(frozen=True)
class GraphOp:
    """One linear (a 1x1 ``Convolution``) as the graph declares it."""

    name: str
    out_features: int
    in_features: int
    bits: int
    """2 to 8, 16 (halves) or 32 (floats)."""
    blocks: int
    """Scales per row; 0 for floats."""
    symmetric: bool
    scale_bits: int
    record: Record

    @property
    def block(self) -> int:
        """Weights per scale; 0 for a whole row (the file does not tell block 0 from block = row) and for floats."""
        return self.in_features // self.blocks if self.blocks > 1 else 0

    @property
    def bias(self) -> bool:
        """Whether it has a bias."""
        return self.record.bias > 0

    @property
    def format(self) -> QuantFormat:
        """What the graph says, as a format.

        Raises:
            InputError: a width that qplan does not know, e.g. 1 bit.
        """
        if self.bits >= 16:
            return QuantFormat(self.bits, 0)
        return QuantFormat(self.bits, self.block, self.symmetric, self.scale_bits)

    def holds(self, fmt: QuantFormat) -> bool:
        """Whether graph and bytes are those of ``fmt``: the same numbers, and ranges of exactly their lengths."""
        declared = (self.bits, self.blocks, self.symmetric, self.scale_bits)
        blocks = 0 if fmt.is_float else self.in_features // fmt.block_size(self.in_features)
        return declared == (fmt.bits, blocks, fmt.symmetric, fmt.scale_bits) and (
            self.record.weight
            == fmt.header_bytes(self.out_features, self.in_features)
            + fmt.code_bytes(self.out_features, self.in_features)
            and self.record.alpha == fmt.alpha_bytes(self.out_features, self.in_features)
        )


def read_ops(folder: Path) -> tuple[GraphOp, ...]:
    """Every linear of a model folder in graph order, from the graph that the engine loads (``llm.mnn``).

    Raises:
        InputError: no graph there, or no linears in it.
        ToolError: the graph cannot be converted.
    """
    with tempfile.TemporaryDirectory(prefix="qplan-graph-") as work:
        target = Path(work) / GRAPH_JSON_FILE
        graph_to_json(folder / GRAPH_FILE, target)
        return linear_ops(read_document(target))


def read_document(path: Path) -> Node:
    """The JSON form of a graph.

    Raises:
        InputError: no such file, or not a graph.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as a graph: {error}; export the model again"
        raise InputError(msg) from None
    if not isinstance(document, dict) or "oplists" not in document:
        msg = f"{path} is not the JSON form of an MNN graph (no 'oplists'); export the model again"
        raise InputError(msg)
    return document


def nodes(document: Node) -> Iterator[Node]:
    """Every op of the main graph, then of the subgraphs (experts)."""
    yield from document["oplists"]
    for subgraph in document.get("subgraphs") or ():
        yield from subgraph["nodes"]


def external(node: Node) -> list[int] | None:
    """The op's ranges of the weight file, ``[offset, length, length, ...]``; None if it has none."""
    main = node.get("main")
    found = main.get("external") if isinstance(main, dict) else None
    return [int(part) for part in found] if found else None


def is_linear(node: Node) -> bool:
    """Whether the op is a matrix product with stored weights: a 1x1 convolution in one group."""
    if node.get("type") != "Convolution" or external(node) is None:
        return False
    common = node["main"]["common"]
    return (common["kernelX"], common["kernelY"], common.get("group", 1)) == (1, 1, 1)


def linear_ops(document: Node) -> tuple[GraphOp, ...]:
    """Every linear of a graph, in graph order.

    Raises:
        InputError: no linears, or two of one name.
    """
    ops = tuple(_read_op(node) for node in nodes(document) if is_linear(node))
    names = [op.name for op in ops]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not ops or repeated:
        msg = f"the graph has linears of one name: {', '.join(repeated)}" if ops else "the graph has no linears"
        raise InputError(msg + "; this export is not of a language model that qplan knows")
    return ops


def _read_op(node: Node) -> GraphOp:
    common, quant = node["main"]["common"], node["main"].get("quanParameter")
    out_features, in_features = int(common["outputCount"]), int(common["inputCount"])
    ranges = external(node) or []
    if quant is None:  # plain floats: [offset, weights, bias]
        record = Record(ranges[0], ranges[1], 0, ranges[2])
        return GraphOp(node["name"], out_features, in_features, 32, 0, symmetric=False, scale_bits=16, record=record)
    record = Record(*ranges[:4])
    if quant["type"] == 3:
        return GraphOp(node["name"], out_features, in_features, 16, 0, symmetric=False, scale_bits=16, record=record)
    scale_bits = 16 if quant.get("scaleStorage") == "FP16" else 32
    symmetric = not quant["readType"]
    scales = record.alpha * 8 // scale_bits if symmetric else int(quant["readType"])
    return GraphOp(
        name=node["name"],
        out_features=out_features,
        in_features=in_features,
        bits=int(quant["aMaxOrBits"]),
        blocks=scales // out_features,
        symmetric=symmetric,
        scale_bits=scale_bits,
        record=record,
    )
