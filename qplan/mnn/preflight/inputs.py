"""The graph's inputs and outputs against what the engine feeds and asks for; tensors that no op makes."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.mnn.engines import FEEDS_LOGITS_INDEX
from qplan.mnn.files import GRAPH_FILE
from qplan.mnn.graph.binary import INPUT, BinaryGraph, GraphNode
from qplan.mnn.preflight.finding import EXPORT_AGAIN, REFUSED, Finding, error, warning
from qplan.mnn.preflight.model import ENGINE_INPUTS, LOGITS, ModelFolder


def check_inputs(model: ModelFolder) -> Iterator[Finding]:
    """Walk back from the logits: every tensor on the way must be made by an op or fed by the engine.

    Dead ops of a valid export refer to tensors that no op makes; the engine never runs them.
    """
    graph = model.graph
    if graph is None:
        return
    if LOGITS not in graph.tensor_names:
        what = f"no tensor is called {LOGITS}; the graph's outputs are {', '.join(graph.output_names) or 'unnamed'}"
        yield error("no-logits", GRAPH_FILE, what, f"'Can't find output {LOGITS}': {REFUSED}", EXPORT_AGAIN)
    elif not any(graph.tensor_name(index) == LOGITS for node in graph.nodes for index in node.outputs):
        yield error("no-logits", GRAPH_FILE, f"no op makes the tensor {LOGITS}", REFUSED, EXPORT_AGAIN)
    else:
        live = model.live_nodes()
        declared = {graph.tensor_name(index) for node in graph.nodes if node.type == INPUT for index in node.outputs}
        yield from _unmade(model, graph, live, declared)
        yield from _unused(graph, live, declared)


def _unmade(
    model: ModelFolder, graph: BinaryGraph, live: tuple[GraphNode, ...], declared: set[str]
) -> Iterator[Finding]:
    """Tensors that are needed, and neither made nor fed: each once, with its first consumer."""
    made = {index for node in graph.nodes for index in node.outputs if node.type != INPUT}
    consumer: dict[int, GraphNode] = {}
    for node in live:
        for index in node.inputs:
            if index >= 0 and index not in made and graph.tensor_name(index) not in model.fed_inputs:
                consumer.setdefault(index, node)
    for index, node in consumer.items():
        name, where = graph.tensor_name(index), f"{GRAPH_FILE}, {node.name}"
        effect = f"'{index} tensor [ {name} ] is input but not found': {REFUSED}"
        if name == "logits_index":
            remedy = f"run it on an engine from {FEEDS_LOGITS_INDEX}, or export with an older exporter"
            yield error("unfed-input", where, f"engine {model.engine} does not feed {name}", effect, remedy)
        elif name in declared:
            what = f"it needs the input {name}; the engine feeds {', '.join(model.fed_inputs)}"
            yield error("unfed-input", where, what, effect, EXPORT_AGAIN)
        else:
            what = f"it needs tensor {index}, {name}, which no op makes"
            yield error("dangling-tensor", where, what, effect, EXPORT_AGAIN)


def _unused(graph: BinaryGraph, live: tuple[GraphNode, ...], declared: set[str]) -> Iterator[Finding]:
    """Inputs of the engine that the logits do not depend on, or that the graph does not declare."""
    used = {graph.tensor_name(index) for node in live for index in node.inputs}
    for name in ENGINE_INPUTS:
        what = f"the logits do not depend on {name}"
        if name not in used and name == "input_ids":
            yield error("unused-input", GRAPH_FILE, what, "every text has the same logits", EXPORT_AGAIN)
        elif name not in used and name == "logits_index":
            effect = "right, but prefill computes the logits of every position"
            yield warning("unused-input", GRAPH_FILE, what, effect, "export it with a newer llmexport")
        elif name in used and name not in declared:
            effect = "MNN.llm binds it by name; other readers of the graph refuse it"
            yield warning("undeclared-input", GRAPH_FILE, f"{name} is used and not declared", effect, EXPORT_AGAIN)
