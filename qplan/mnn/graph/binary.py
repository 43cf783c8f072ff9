"""``llm.mnn`` itself, read in milliseconds and without the converter: what a preflight needs to know of a graph.

Field numbers and enum values are those of MNN's schema (``schema/default/*.fbs``), which only grows at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qplan.errors import InputError
from qplan.mnn.graph.flatbuffer import Table

INPUT, LINEAR_ATTENTION, FUSED_LINEAR, LAYER_NORM = 34, 305, 307, 603
"""Op types."""

_BLOB, _CONVOLUTION, _INPUT, _SCALE, _LAYER_NORM, _ATTENTION, _FUSED = 7, 9, 21, 58, 88, 98, 103
"""Parameter types."""

_EXTERNAL_FIELD = {_BLOB: 9, _CONVOLUTION: 6, _SCALE: 3, _LAYER_NORM: 5}
"""Where a parameter type keeps its ranges of the weight file."""


@dataclass(frozen=True)
class Convolution:
    """A matrix product as the graph declares it, nothing of it checked."""

    out_features: int
    in_features: int
    kernel: int
    """Kernel height times width: 1 for a linear."""
    group: int
    coding: int
    """0 plain floats, 1 integers with a value table, 3 halves, others are not made by llmexport."""
    bits: int
    minimum: int
    """``aMin``: 1 for asymmetric integers."""
    zero_points: int
    """``readType``: zero points of the whole matrix; 0 is symmetric."""
    wide_shape: bool
    """Whether the record holds its two sizes in 32 bits."""
    scale_bits: int
    external: tuple[int, ...]
    """Offset in the weight file, then lengths."""

    @property
    def is_linear(self) -> bool:
        """Whether it is a product with one matrix."""
        return (self.kernel, self.group) == (1, 1)

    @property
    def symmetric(self) -> bool:
        """What the engine takes it for: it looks at the zero points alone."""
        return self.zero_points == 0

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.out_features * (self.in_features // max(1, self.group)) * self.kernel


@dataclass(frozen=True)
class GraphNode:
    """One op."""

    name: str
    type: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    externals: tuple[tuple[int, ...], ...]
    """Ranges of the weight file."""
    convolutions: tuple[Convolution, ...]
    """One for a convolution, several for a fused linear."""
    dims: tuple[int, ...] = ()
    """Of an input."""
    dtype: int = 0
    """Of an input: 1 is float, 3 is int."""
    packs_channels: bool = False
    """An attention that writes the layout of the C4 fusion."""


@dataclass(frozen=True)
class BinaryGraph:
    """A graph file."""

    nodes: tuple[GraphNode, ...]
    """Of the main graph."""
    subgraph_nodes: tuple[GraphNode, ...]
    """Of all others, e.g. experts."""
    tensor_names: tuple[str, ...]
    output_names: tuple[str, ...]
    converter: str
    """Version of the converter that wrote it; empty if unsaid."""

    @property
    def all_nodes(self) -> tuple[GraphNode, ...]:
        """Nodes of all graphs."""
        return self.nodes + self.subgraph_nodes

    def tensor_name(self, index: int) -> str:
        """Name of a tensor, or its number if it has none."""
        return self.tensor_names[index] if 0 <= index < len(self.tensor_names) else f"tensor {index}"


def read_binary_graph(path: Path) -> BinaryGraph:
    """Read a graph file.

    Raises:
        InputError: no such file, or not a whole graph.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise InputError(msg) from None
    return parse_binary_graph(data)


def parse_binary_graph(data: bytes) -> BinaryGraph:
    """Read a graph file's bytes.

    Raises:
        InputError: not a whole graph.
    """
    net = Table.root(data)
    extra = net.table(2)
    nodes = tuple(_nodes(net, 3))
    if not nodes:
        msg = "it holds no ops: not an MNN graph, or a damaged one"
        raise InputError(msg)
    names = net.strings(7)
    _check_indexes(nodes, len(names))
    inner = tuple(node for graph in net.tables(10) for node in _nodes(graph, 4))
    return BinaryGraph(nodes, inner, names, net.strings(4), extra.string(2) if extra else "")


def _nodes(graph: Table, field: int) -> Iterator[GraphNode]:
    return (_node(op) for op in graph.tables(field))


def _check_indexes(nodes: tuple[GraphNode, ...], count: int) -> None:
    for node in nodes:
        for index in (*node.inputs, *node.outputs):
            if not -1 <= index < count:  # -1 is an input that is left out
                msg = f"{node.name} refers to tensor {index} of {count}: the file is damaged"
                raise InputError(msg)


def _node(op: Table) -> GraphNode:
    kind, parameter = op.uint8(1), op.table(2)
    externals: tuple[tuple[int, ...], ...] = ()
    convolutions: tuple[Convolution, ...] = ()
    dims: tuple[int, ...] = ()
    dtype, packs = 0, False
    if parameter is not None:
        if kind in _EXTERNAL_FIELD:
            found = parameter.int64s(_EXTERNAL_FIELD[kind])
            externals = (found,) if found else ()
        if kind == _CONVOLUTION:
            convolutions = (_convolution(parameter),)
        elif kind == _FUSED:
            convolutions = tuple(map(_convolution, parameter.tables(0)))
            externals = tuple(conv.external for conv in convolutions if conv.external)
            norm = parameter.table(3)
            if norm is not None and norm.int64s(5):
                externals += (norm.int64s(5),)
        elif kind == _INPUT:
            dims, dtype = parameter.int32s(0), parameter.int32(1)
        elif kind == _ATTENTION:
            packs = bool(parameter.uint8(5))
    return GraphNode(
        name=op.string(3),
        type=op.int32(5),
        inputs=op.int32s(0),
        outputs=op.int32s(4),
        externals=externals,
        convolutions=convolutions,
        dims=dims,
        dtype=dtype,
        packs_channels=packs,
    )


def _convolution(parameter: Table) -> Convolution:
    common, quant = parameter.table(0), parameter.table(3)
    if common is None:
        msg = "a convolution without sizes: the file is damaged"
        raise InputError(msg)
    return Convolution(
        out_features=common.int32(10),
        in_features=common.int32(11),
        kernel=common.int32(2, 1) * common.int32(3, 1),
        group=common.int32(9, 1),
        coding=quant.int32(2) if quant else 0,
        bits=quant.int32(7) if quant else 32,
        minimum=quant.int32(8) if quant else 0,
        zero_points=quant.int32(9) if quant else 0,
        wide_shape=bool(quant.uint8(11)) if quant else False,
        scale_bits=16 if quant is not None and quant.int8(15) == 1 else 32,
        external=parameter.int64s(6),
    )
