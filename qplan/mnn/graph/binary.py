"""The one reader of graphs: ``llm.mnn`` itself, in milliseconds and without MNN's converter.

Field numbers and enum values are those of MNN's schema (``schema/default/*.fbs``), which only grows at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import read_bounded
from qplan.errors import InputError
from qplan.mnn.files import GRAPH_FILE
from qplan.mnn.graph.flatbuffer import Table
from qplan.mnn.graph.linear import FLOATS, HALVES, Linear

CONVOLUTION, INPUT, LINEAR_ATTENTION, FUSED_LINEAR, LAYER_NORM = 12, 34, 305, 307, 603
"""Op types."""

_BLOB, _CONVOLUTION, _INPUT, _SCALE, _LAYER_NORM, _ATTENTION, _FUSED = 7, 9, 21, 58, 88, 98, 103
"""Parameter types."""

_EXTERNAL_FIELD = {_BLOB: 9, _CONVOLUTION: 6, _SCALE: 3, _LAYER_NORM: 5}
"""Where a parameter type keeps its ranges of the weight file."""


_MOST_BYTES = 256 << 20
"""A graph without its weights; that of a mixture with thousands of experts has some ten million."""


@dataclass(frozen=True)
class GraphNode:
    """One op."""

    name: str
    type: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    externals: tuple[tuple[int, ...], ...]
    """Ranges of the weight file that it reads: offset, then lengths."""
    convolutions: tuple[Linear, ...]
    """One for a convolution, several for a fused linear."""
    dims: tuple[int, ...] = ()
    """Shape of an input."""
    dtype: int = 0
    """Data type of an input: 1 is float, 3 is int."""
    has_weights: bool = True
    """Whether the graph says where its weights are, if it is of a kind that has any."""
    packs_channels: bool = False
    """Whether it is an attention that writes the layout of the C4 fusion."""

    @property
    def is_linear(self) -> bool:
        """Whether it is one plain matrix product."""
        return self.type == CONVOLUTION and len(self.convolutions) == 1 and self.convolutions[0].is_plain


@dataclass(frozen=True)
class BinaryGraph:
    """A graph file."""

    nodes: tuple[GraphNode, ...]
    """Ops of the main graph."""
    subgraph_nodes: tuple[GraphNode, ...]
    """Ops of the other graphs, e.g. experts."""
    tensor_names: tuple[str, ...]
    output_names: tuple[str, ...]
    converter: str
    """Version of the converter that wrote it; empty if the file does not say."""

    @property
    def all_nodes(self) -> tuple[GraphNode, ...]:
        """Nodes of all graphs."""
        return self.nodes + self.subgraph_nodes

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Every linear that has its weights in the weight file, in graph order: what a format is chosen for.

        Raises:
            InputError: there are none, two share a name, or some are fused.
        """
        fused = [node.name for node in self.all_nodes if node.type == FUSED_LINEAR]
        found = tuple(node.convolutions[0] for node in self.all_nodes if node.is_linear)
        repeated = sorted(name for name, times in Counter(op.name for op in found).items() if times > 1)
        if fused:
            msg = f"the graph has fused linears: {', '.join(fused[:3])}; export it with --disable_transformer_c4"
            raise InputError(msg)
        if not found or repeated:
            msg = f"several linears share a name: {', '.join(repeated)}" if found else "the graph has no linears"
            raise InputError(msg + "; this export is not of a language model that qplan knows")
        return found

    @property
    def other_ranges(self) -> tuple[tuple[int, ...], ...]:
        """Ranges of the weight file, offset and lengths, that ops other than linears read."""
        return tuple(ranges for node in self.all_nodes if not node.is_linear for ranges in node.externals)

    def tensor_name(self, index: int) -> str:
        """Name of a tensor, or its number if it has none."""
        return self.tensor_names[index] if 0 <= index < len(self.tensor_names) else f"tensor {index}"


def read_binary_graph(path: Path) -> BinaryGraph:
    """Read a graph file.

    Raises:
        InputError: no such file, or not a whole graph.
    """
    return parse_binary_graph(read_bounded(path, _MOST_BYTES))


def read_linears(folder: Path) -> tuple[Linear, ...]:
    """Every linear of a model folder in graph order, from the graph that the engine loads.

    Raises:
        InputError: no whole graph there, or no linears in it.
    """
    return read_binary_graph(folder / GRAPH_FILE).linears


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
    name, kind, parameter = op.string(3), op.uint8(1), op.table(2)
    externals: tuple[tuple[int, ...], ...] = ()
    convolutions: tuple[Linear, ...] = ()
    dims: tuple[int, ...] = ()
    dtype, packs, weighed = 0, False, True
    if parameter is not None:
        if kind in _EXTERNAL_FIELD:
            found = parameter.int64s(_EXTERNAL_FIELD[kind])
            externals = (found,) if found else ()
        if kind == _CONVOLUTION:
            convolutions = (_linear(name, parameter),)
            weighed = bool(externals) or _inline_weights(parameter)
        elif kind == _FUSED:
            parts = tuple(parameter.tables(0))
            names = [name] if len(parts) == 1 else [f"{name}[{number}]" for number in range(len(parts))]
            convolutions = tuple(map(_linear, names, parts))
            externals = tuple(conv.external for conv in convolutions if conv.external)
            norm = parameter.table(3)
            if norm is not None and norm.int64s(5):
                externals += (norm.int64s(5),)
        elif kind == _INPUT:
            dims, dtype = parameter.int32s(0), parameter.int32(1)
        elif kind == _ATTENTION:
            packs = bool(parameter.uint8(5))
    return GraphNode(
        name=name,
        type=op.int32(5),
        inputs=op.int32s(0),
        outputs=op.int32s(4),
        externals=externals,
        convolutions=convolutions,
        dims=dims,
        dtype=dtype,
        has_weights=weighed,
        packs_channels=packs,
    )


def _inline_weights(convolution: Table) -> bool:
    """Whether the graph itself holds a convolution's weights, as floats or as codes."""
    quant = convolution.table(3)
    return convolution.length(1) > 0 or (quant is not None and quant.length(0) > 0)


def _linear(name: str, parameter: Table) -> Linear:
    common, quant = parameter.table(0), parameter.table(3)
    if common is None:
        msg = "a convolution without sizes: the file is damaged"
        raise InputError(msg)
    coding = quant.int32(2) if quant else FLOATS
    declared = quant.int32(7) if quant else 0
    return Linear(
        name=name,
        out_features=common.int32(10),
        in_features=common.int32(11),
        kernel=common.int32(2, 1) * common.int32(3, 1),
        group=common.int32(9, 1),
        coding=coding,
        bits={FLOATS: 32, HALVES: 16}.get(coding, declared),
        zero_points=quant.int32(9) if quant else 0,
        wide_shape=bool(quant.uint8(11)) if quant else False,
        scale_bits=16 if quant is not None and quant.int8(15) == 1 else 32,
        external=parameter.int64s(6),
    )
