"""``config.json`` and ``llm_config.json`` against the graph and against what the engine understands."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.mnn.files import LLM_CONFIG_FILE
from qplan.mnn.graph.binary import INPUT, GraphNode
from qplan.mnn.preflight.finding import EXPORT_AGAIN, GARBAGE, Finding, error, warning
from qplan.mnn.preflight.model import ModelFolder, can_be_a_name
from qplan.mnn.runtime import MEMORY
from qplan.settings import PRECISIONS

_WORDS = {
    "memory": MEMORY,
    "precision": PRECISIONS,
    "power": ("low", "normal", "high"),
    "backend_type": ("cpu", "cuda", "metal", "opencl", "opengl", "vulkan", "npu", "auto"),
    "attention_mask": ("float", "int", "glm", "glm2"),
    "attention_type": ("full", "sliding", "mix"),
}
_SIZE = "hidden_size"
_LIMITS = ("layer_nums", "thread_num", "max_new_tokens", "max_all_tokens")
"""Numbers that the engine does without, or replaces by its defaults where they make no sense."""
_FILES = (
    *("llm_model", "llm_weight", "tokenizer_file", "embedding_file", "llm_config", "base_dir"),
    *("visual_model", "audio_model", "eagle_model", "mtp_model"),
)
_SAMPLER = "sampler_type"
"""A text too, but the engine takes its default for what is none."""
_FLOAT, _INT32 = 1, 3
_CRASH = "a crash (SIGFPE, SIGSEGV)"


def check_settings(model: ModelFolder) -> Iterator[Finding]:
    """Types and values of the settings, and sizes that the graph declares too."""
    yield from _numbers(model)
    yield from _texts(model)
    if model.graph is None:
        return
    inputs = {node.name: node for node in model.graph.nodes if node.type == INPUT}
    yield from _hidden(model, inputs.get("input_ids"))
    yield from _mask(model, inputs.get("attention_mask"))


def _numbers(model: ModelFolder) -> Iterator[Finding]:
    for key in (_SIZE, *_LIMITS):
        if key not in model.settings:
            continue
        value = model.whole(key)
        if value is None or value < 1:
            what = f"{key} is {model.settings[key]!r}, expected a whole number from 1"
            if key == _SIZE:
                yield error("bad-setting", key, what, _CRASH, f"correct {key}")
            else:
                yield warning("bad-setting", key, what, "the engine silently takes its default", f"correct {key}")
    if _SIZE not in model.settings and model.settings:
        what = f"{_SIZE} is missing, and the engine assumes 4096"
        yield error("bad-setting", _SIZE, what, "a crash or " + GARBAGE, EXPORT_AGAIN)


def _texts(model: ModelFolder) -> Iterator[Finding]:
    for key in _FILES:
        if key in model.settings and not can_be_a_name(model.settings[key]):
            what = f"{key} is {repr(model.settings[key])[:80]}, expected the name of a file"
            yield error("bad-setting", key, what, _CRASH, f"correct {key}")
    if not isinstance(model.settings.get(_SAMPLER, ""), str):
        what = f"{_SAMPLER} is {model.settings[_SAMPLER]!r}, expected a string"
        yield warning("bad-setting", _SAMPLER, what, "the engine silently takes its default", f"correct {_SAMPLER}")
    for key, words in _WORDS.items():
        value = model.settings.get(key)
        if value is not None and value not in words:
            what = f"{key} is {value!r}; the engine knows {', '.join(words)}"
            yield warning("unknown-setting", key, what, "the engine silently takes its default", f"correct {key}")


def _hidden(model: ModelFolder, node: GraphNode | None) -> Iterator[Finding]:
    hidden = model.whole("hidden_size")
    if node is None or not node.dims or hidden is None or node.dims[-1] in (-1, hidden):
        return
    what = f"hidden_size is {hidden}, the graph's input_ids are {node.dims[-1]} wide"
    yield error("hidden-size", f"{LLM_CONFIG_FILE}, hidden_size", what, "a crash or " + GARBAGE, EXPORT_AGAIN)


def _mask(model: ModelFolder, node: GraphNode | None) -> Iterator[Finding]:
    declared = model.settings.get("attention_mask", "int")
    if node is None:
        return
    # the engine takes "int" for what is no string
    expected = _FLOAT if declared == "float" else _INT32
    if node.dtype != expected:
        what = f"attention_mask is {declared!r}, the graph takes type {node.dtype} ({_FLOAT} float, {_INT32} int)"
        yield error("mask-type", f"{LLM_CONFIG_FILE}, attention_mask", what, GARBAGE, EXPORT_AGAIN)
