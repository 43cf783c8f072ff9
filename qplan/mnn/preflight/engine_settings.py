"""Settings that are well formed, and with which the engine crashes or computes garbage; measured, engine 3.6.1."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.mnn.files import GRAPH_FILE
from qplan.mnn.graph.binary import INPUT
from qplan.mnn.preflight.finding import EXPORT_AGAIN, GARBAGE, REFUSED, Finding, error, warning
from qplan.mnn.preflight.model import TALKER, ModelFolder
from qplan.mnn.runtime import ATTENTION_SCALE, TURBO_SCALE

_MODE_KEYS = ("attention_mode", "quant_qkv")
"""The setting, and its old name, which is read where the new one is not there."""

_ATTENTION_MODES = (0, 1, 2, 8, 9, 10)
_TURBO = (3, 4, 5, 6)
"""Remainders by 8 of TurboQuant, whose scores are divided by the root of the head's width twice: garbage, unless
`qplan.mnn.runtime.TURBO_SCALE` takes the second's place. The engine takes other numbers for one that it knows."""
_INT8_KEYS = (1, 2)
"""Remainders by 8 of int8 keys, which a second prompt into the same cache garbles."""

_SPECULATIVE = {"eagle": "eagle.mnn", "mtp": "mtp.mnn"}
"""Ways of guessing tokens ahead that load a graph of their own."""

_TALKER_OUTPUT = "talker_embeds"
_CRASH = "a crash (SIGSEGV)"


def check_engine_settings(model: ModelFolder) -> Iterator[Finding]:
    """Modes and chunks that are no good, and parts of a model that settings promise and the folder does not hold."""
    yield from _attention_mode(model)
    yield from _chunks(model)
    yield from _top_k(model)
    yield from _speculative(model)
    yield from _parts(model)


def _attention_mode(model: ModelFolder) -> Iterator[Finding]:
    key = next((name for name in _MODE_KEYS if name in model.settings), "")
    value, whole = model.settings.get(key), model.whole(key)
    if key and whole in _ATTENTION_MODES:
        yield from _int8_keys(model, key, whole)
        return
    if not key:
        return
    what = f"{key} is {value!r}; the engine knows {', '.join(map(str, _ATTENTION_MODES))}"
    if whole is not None and whole >= 0 and whole % 8 in _TURBO:
        yield from _turbo(model, key, what)
    else:
        yield warning("unknown-setting", key, what, "the engine silently takes one that it knows", f"correct {key}")


def _turbo(model: ModelFolder, key: str, what: str) -> Iterator[Finding]:
    if model.settings.get(ATTENTION_SCALE) != TURBO_SCALE:
        remedy = f"correct {key}, or take it out; 'qplan emit --context N --kv tq4' writes what makes it right"
        yield error("attention-mode", key, what, GARBAGE, remedy)
    elif model.settings.get("precision", "low") == "low":
        told = f"{key} is {model.settings[key]} (TurboQuant) with precision low"
        yield warning("turbo-precision", key, told, "wrong on ARM processors with fp16", "set precision to normal")


def _int8_keys(model: ModelFolder, key: str, mode: int | None) -> Iterator[Finding]:
    asked = [name for name in ("reuse_kv", "chunk", "chunk_limits") if model.settings.get(name)]
    if mode is not None and mode % 8 in _INT8_KEYS and asked:
        what = f"{key} is {mode} (int8 keys) with {' and '.join(asked)}"
        effect = "after the first prompt, later ones go by keys that are wrong: 0.2 nats or more a token"
        yield error("int8-keys", key, what, effect, f"take {' and '.join(asked)} out, or set {key} to 8")


def _chunks(model: ModelFolder) -> Iterator[Finding]:
    limits = model.settings.get("chunk_limits")
    pair = limits if isinstance(limits, list) and len(limits) == 2 else []
    remedy = "take it out, or give more tokens than texts have"
    for key, value in [("chunk", model.settings.get("chunk")), *(("chunk_limits", item) for item in pair)]:
        if not isinstance(value, int) or isinstance(value, bool) or value == 0:
            continue  # the engine does without
        what = f"{key} is {value}"
        lost = "a pass over more tokens returns the logits of its last chunk alone"
        if value < 0:
            yield error("chunk", key, f"{what}, expected 0 or more", f"{_CRASH}, or {GARBAGE}", remedy)
        elif value == 1:
            yield error("chunk", key, what, f"prefill goes token by token, and {lost}", remedy)
        else:
            yield warning("chunk", key, what, f"{lost}: right for generating, wrong for judging a text", remedy)


def _top_k(model: ModelFolder) -> Iterator[Finding]:
    key = "top_k"
    if key in model.settings and model.whole(key) in (None, 0):
        what = f"{key} is {model.settings[key]!r}, expected a whole number from 1"
        yield error("bad-setting", key, what, f"{_CRASH} where the sampler draws", f"correct {key}")


def _speculative(model: ModelFolder) -> Iterator[Finding]:
    kind = model.settings.get("speculative_type")
    name = _SPECULATIVE.get(kind) if isinstance(kind, str) else None
    if name is not None and not (path := model.path(f"{kind}_model", name)).is_file():
        what = f"speculative_type is {kind!r}, and there is no {path.name}"
        yield error("missing-file", path.name, what, _CRASH, "take speculative_type out, or add the file")


def _parts(model: ModelFolder) -> Iterator[Finding]:
    """Inputs that the engine feeds and outputs that it asks for because of a setting."""
    graph = model.graph
    if graph is None:
        return
    inputs = {node.name: node for node in graph.nodes if node.type == INPUT}
    for key, name in model.optional_inputs.items():
        if name not in inputs:
            what = f"{key} is {model.settings[key]!r}, and {GRAPH_FILE} has no input {name}"
            yield error("missing-part", key, what, _CRASH, f"take {key} out; it belongs to another model")
    if model.settings.get(TALKER) is True and _TALKER_OUTPUT not in graph.tensor_names:
        what = f"{TALKER} is true, and {GRAPH_FILE} has no output {_TALKER_OUTPUT}"
        yield error("missing-part", TALKER, what, REFUSED, f"take {TALKER} out; it belongs to another model")
    yield from _positions(model)


def _positions(model: ModelFolder) -> Iterator[Finding]:
    """With ``is_mrope`` the engine gives every token three positions."""
    if model.graph is None or model.settings.get("is_mrope") is not True:
        return
    for node in model.graph.nodes:
        fits = len(node.dims) != 2 or node.dims[0] in (-1, 3)
        if node.type == INPUT and node.name == "position_ids" and not fits:
            what = f"is_mrope is true, and the graph takes {node.dims[0]} position of a token, not 3"
            yield error("positions", "is_mrope", what, _CRASH, EXPORT_AGAIN)
