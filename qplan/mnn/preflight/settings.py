"""``config.json`` and ``llm_config.json`` against the graph and against what the engine understands."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.mnn.files import LLM_CONFIG_FILE
from qplan.mnn.graph.binary import INPUT, GraphNode
from qplan.mnn.preflight.finding import EXPORT_AGAIN, GARBAGE, Finding, error, warning
from qplan.mnn.preflight.model import ModelFolder
from qplan.mnn.runtime import MEMORY, PRECISION

_WORDS = {
    "memory": MEMORY,
    "precision": PRECISION,
    "power": ("low", "normal", "high"),
    "backend_type": ("cpu", "cuda", "metal", "opencl", "opengl", "vulkan", "npu", "auto"),
    "attention_mask": ("float", "int", "glm", "glm2"),
    "attention_type": ("full", "sliding", "mix"),
}
_SIZES = ("hidden_size", "layer_nums")
_LIMITS = ("thread_num", "max_new_tokens", "max_all_tokens")
"""Numbers that the engine replaces by its defaults where they make no sense."""
_TEXT = ("llm_model", "llm_weight", "tokenizer_file", "embedding_file", "sampler_type", "llm_config", "base_dir")
_FLOAT, _INT32 = 1, 3


def check_settings(model: ModelFolder) -> Iterator[Finding]:
    """Types and values of the settings, and sizes that the graph declares too."""
    yield from _types(model)
    if model.graph is None:
        return
    inputs = {node.name: node for node in model.graph.nodes if node.type == INPUT}
    yield from _hidden(model, inputs.get("input_ids"))
    yield from _mask(model, inputs.get("attention_mask"))


def _types(model: ModelFolder) -> Iterator[Finding]:
    crash = "a crash (SIGFPE, SIGSEGV)"
    for key in (*_SIZES, *_LIMITS):
        if key not in model.settings:
            continue
        value = model.whole(key)
        if value is None or value < 1:
            what = f"{key} is {model.settings[key]!r}, expected a whole number from 1"
            if key in _SIZES:
                yield error("bad-setting", key, what, crash, f"correct {key}")
            else:
                yield warning("bad-setting", key, what, "the engine silently takes its default", f"correct {key}")
    for key in _TEXT:
        if key in model.settings and not isinstance(model.settings[key], str):
            what = f"{key} is {model.settings[key]!r}, expected a string"
            yield error("bad-setting", key, what, crash, f"correct {key}")
    for key, words in _WORDS.items():
        value = model.settings.get(key)
        if value is not None and value not in words:
            what = f"{key} is {value!r}; the engine knows {', '.join(words)}"
            yield warning("unknown-setting", key, what, "the engine silently takes its default", f"correct {key}")
    if "hidden_size" not in model.settings and model.settings:
        what = "hidden_size is missing, and the engine assumes 4096"
        yield error("bad-setting", "hidden_size", what, "a crash or " + GARBAGE, EXPORT_AGAIN)


def _hidden(model: ModelFolder, node: GraphNode | None) -> Iterator[Finding]:
    hidden = model.whole("hidden_size")
    if node is None or not node.dims or hidden is None or node.dims[-1] in (-1, hidden):
        return
    what = f"hidden_size is {hidden}, the graph's input_ids are {node.dims[-1]} wide"
    yield error("hidden-size", f"{LLM_CONFIG_FILE}, hidden_size", what, "a crash or " + GARBAGE, EXPORT_AGAIN)


def _mask(model: ModelFolder, node: GraphNode | None) -> Iterator[Finding]:
    declared = model.settings.get("attention_mask", "int")
    if node is None or not isinstance(declared, str):
        return
    expected = _FLOAT if declared == "float" else _INT32
    if node.dtype != expected:
        what = f"attention_mask is {declared!r}, the graph takes type {node.dtype} ({_FLOAT} float, {_INT32} int)"
        yield error("mask-type", f"{LLM_CONFIG_FILE}, attention_mask", what, GARBAGE, EXPORT_AGAIN)
