"""Broken model folders, each made from a good one, with what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qplan.mnn.checksums import write_checksums
from qplan.mnn.files import CHECKSUMS_FILE, GRAPH_FILE, GRAPH_JSON_FILE, WEIGHT_FILE

Document = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """One way to break a folder."""

    name: str
    code: str
    """Of the finding that names it."""
    base: str
    """``tied`` or ``untied``: which good folder."""
    damage: Callable[[Path], None] | None = None
    """Changes files of a copy."""
    edit: Callable[[Document], None] | None = None
    """Changes the graph of a copy."""
    severity: str = "error"
    engine: str | None = None
    """Version that it is a fault for; None for every one."""


def make_corpus(faults: Sequence[Fault], bases: dict[str, Path], out: Path) -> dict[str, Path]:
    """Make all folders; graphs are written by the converter in one child process.

    Nobody but qplan leaves checksums, with which every change would be found: they are taken out.
    """
    made, jobs = {}, []
    for fault in faults:
        folder = out / fault.name
        base = bases[fault.base]
        folder.mkdir(parents=True)
        for path in base.iterdir():
            if path.name not in {GRAPH_JSON_FILE, CHECKSUMS_FILE}:
                shutil.copyfile(path, folder / path.name)
        if fault.edit is not None:
            document = json.loads((base / GRAPH_JSON_FILE).read_text(encoding="utf-8"))
            fault.edit(document)
            source = out / f"{fault.name}.json"
            source.write_text(json.dumps(document), encoding="utf-8")
            jobs.append((source, folder / GRAPH_FILE))
        if fault.damage is not None:
            fault.damage(folder)
        made[fault.name] = folder
    if jobs:
        convert(jobs, out)
    return made


def convert(jobs: Sequence[tuple[Path, Path]], work: Path) -> None:
    """JSON graphs to binary ones; not through qplan, which refuses to make a graph that the engine refuses."""
    code = (
        "import sys, _tools\n"
        "for pair in sys.argv[1:]:\n"
        "    source, target = pair.split('=>')\n"
        "    _tools.mnnconvert(['mnnconvert', '-f', 'JSON', '--modelFile', source, '--MNNModel', target])\n"
    )
    for _, target in jobs:
        target.unlink(missing_ok=True)
    pairs = [f"{source}=>{target}" for source, target in jobs]
    subprocess.run([sys.executable, "-c", code, *pairs], cwd=work, check=True, capture_output=True, timeout=300)
    assert all(target.stat().st_size for _, target in jobs)


def write_graph_json(folder: Path) -> None:
    """Put the JSON form of a folder's graph beside it."""
    from qplan.mnn.graph.converter import graph_to_json

    graph_to_json(folder / GRAPH_FILE, folder / GRAPH_JSON_FILE)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return damage


def _cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        os.truncate(folder / name, int((folder / name).stat().st_size * keep))

    return damage


def _append(name: str, count: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with (folder / name).open("ab") as stream:
            stream.write(bytes(count))

    return damage


def _set(name: str, **values: object) -> Callable[[Path], None]:
    """Change keys of a JSON file; None removes one."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / name).read_text(encoding="utf-8")) | values
        kept = {key: value for key, value in found.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")

    return damage


def _turbo_in_halves(folder: Path) -> None:
    """TurboQuant with the scale that makes it right, which the model's own file decides about, in fp16."""
    _set("llm_config.json", attn_scale=1.0)(folder)
    _set("config.json", attention_mode=14, precision="low")(folder)


def _tie(**values: object) -> Callable[[Path], None]:
    """Change keys of the tie record; a function gets the old value."""

    def damage(folder: Path) -> None:
        path = folder / "llm_config.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        for key, value in values.items():
            found["tie_embeddings"][key] = value(found["tie_embeddings"][key]) if callable(value) else value
        path.write_text(json.dumps(found), encoding="utf-8")

    return damage


def _with_number(name: str, key: str, number: str) -> Callable[[Path], None]:
    """Write a number into a JSON file that Python would not write."""

    def damage(folder: Path) -> None:
        _set(name, **{key: "NUMBER"})(folder)
        path = folder / name
        path.write_text(path.read_text(encoding="utf-8").replace('"NUMBER"', number), encoding="utf-8")

    return damage


def _after_checksums(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    def checked(folder: Path) -> None:
        write_checksums(folder)
        damage(folder)

    return checked


def _with_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")

    return damage


def _flip_weight(folder: Path) -> None:
    """A bit in the middle of some codes: nothing but a checksum tells."""
    path = folder / WEIGHT_FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _cut_by(name: str, count: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - count)


def _tie_list(*, cut: int = 5) -> Callable[[Path], None]:
    """The record as a list, which cannot say that scales have 16 bits."""

    def damage(folder: Path) -> None:
        path = folder / "llm_config.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        found["tie_embeddings"] = list(found["tie_embeddings"].values())[:cut]
        path.write_text(json.dumps(found), encoding="utf-8")

    return damage


def linear(document: Document, name: str) -> Document:
    """A linear's parameters."""
    found: Document = next(node for node in document["oplists"] if node["name"] == name)["main"]
    return found


Q = "/layers.1/self_attn/q_proj/Linear"
HEAD = "/lm/lm_head/Linear"


def _linear(name: str, change: Callable[[Document], None]) -> Callable[[Document], None]:
    return lambda document: change(linear(document, name))


def _quant(name: str, **values: object) -> Callable[[Document], None]:
    return lambda document: linear(document, name)["quanParameter"].update(values)


def _external(name: str, place: int, change: Callable[[int], int]) -> Callable[[Document], None]:
    def edit(document: Document) -> None:
        ranges = linear(document, name)["external"]
        ranges[place] = change(ranges[place])

    return edit


def _without(name: str) -> Callable[[Document], None]:
    def edit(document: Document) -> None:
        document["oplists"] = [node for node in document["oplists"] if node["name"] != name]

    return edit


def _rename(old: str, new: str) -> Callable[[Document], None]:
    def edit(document: Document) -> None:
        document["tensorName"] = [new if name == old else name for name in document["tensorName"]]
        for node in document["oplists"]:
            node["name"] = new if node["name"] == old else node["name"]

    return edit


def _both(*edits: Callable[[Document], None]) -> Callable[[Document], None]:
    def edit(document: Document) -> None:
        for each in edits:
            each(document)

    return edit


def _poke(offset_of: Callable[[Document], int], data: bytes) -> Callable[[Path], None]:
    """Overwrite bytes of the weight file, at a place that the graph names."""

    def damage(folder: Path) -> None:
        write_graph_json(folder)
        document = json.loads((folder / GRAPH_JSON_FILE).read_text(encoding="utf-8"))
        (folder / GRAPH_JSON_FILE).unlink()
        with (folder / WEIGHT_FILE).open("r+b") as stream:
            stream.seek(offset_of(document))
            stream.write(data)

    return damage


def _flip_graph(byte: float, bit: int) -> Callable[[Path], None]:
    """Flip a bit of the graph file, at a fraction of its length or from its start."""

    def damage(folder: Path) -> None:
        path = folder / GRAPH_FILE
        data = bytearray(path.read_bytes())
        data[int(byte if byte >= 1 else byte * len(data))] ^= 1 << bit
        path.write_bytes(data)

    return damage


def _scales(name: str) -> Callable[[Document], int]:
    def offset(document: Document) -> int:
        start, weights, *_ = linear(document, name)["external"]
        return int(start + weights)

    return offset


def _norm_external(change: Callable[[list[int]], None]) -> Callable[[Document], None]:
    def edit(document: Document) -> None:
        change(next(node for node in document["oplists"] if node["type"] == "LayerNorm")["main"]["external"])

    return edit


def _start(name: str) -> Callable[[Document], int]:
    return lambda document: int(linear(document, name)["external"][0])


def _value_count(name: str) -> Callable[[Document], int]:
    """Where a record counts its values: after the number of sizes and two of them."""
    return lambda document: int(linear(document, name)["external"][0]) + 5


def _norm(document: Document) -> int:
    node = next(node for node in document["oplists"] if node["type"] == "LayerNorm")
    return int(node["main"]["external"][0])


def _shuffled(folder: Path) -> None:
    """Weights of another model of the same sizes, laid out otherwise."""
    path = folder / WEIGHT_FILE
    data = np.frombuffer(path.read_bytes(), np.uint8)
    path.write_bytes(np.roll(data, 4096).tobytes())


def _old_tokenizer(folder: Path) -> None:
    """A tokenizer of a larger model, in the old text form."""
    (folder / "tokenizer.mtok").write_bytes(b"430 3\n0 1 0\n0 \n400 0\n" + b"\n".join([b"YQ=="] * 400) + b"\n")


def _small_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.mtok").write_bytes(b"430 3\n0 1 0\n0 \n40 0\n" + b"\n".join([b"YQ=="] * 40) + b"\n")


def _endless_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.mtok"
    lines = path.read_bytes().split(b"\n", 3)
    special = int(lines[1].split()[0])
    ids = b" ".join(lines[2].split()[:special])
    path.write_bytes(b"\n".join([lines[0], b"%d 0 0" % special, ids, lines[3]]))


def _half_embedding(folder: Path) -> None:
    _cut("embeddings_bf16.bin", 0.5)(folder)


def _half_the_scales(main: Document) -> None:
    """What llmexport 0.0.5 writes for a symmetric op of an asymmetric export."""
    main["external"][2] //= 2


def _three_blocks(main: Document) -> None:
    """Three scales to a row of 128, and everything else in keeping."""
    rows = main["common"]["outputCount"]
    main["quanParameter"]["readType"] = 3 * rows
    main["external"][2] = 2 * 2 * 3 * rows


FAULTS: tuple[Fault, ...] = (
    # files
    Fault("no-config", "missing-file", "tied", _remove("config.json")),
    Fault("no-llm-config", "missing-file", "tied", _remove("llm_config.json")),
    Fault("no-graph", "missing-file", "tied", _remove("llm.mnn")),
    Fault("no-weights", "missing-file", "tied", _remove("llm.mnn.weight")),
    Fault("no-tokenizer", "missing-file", "tied", _remove("tokenizer.mtok")),
    Fault("no-embedding", "missing-file", "untied", _remove("embeddings_bf16.bin")),
    Fault(
        "visual-without-its-graph", "missing-file", "tied", _set("llm_config.json", is_visual=True), severity="warning"
    ),
    Fault("other-graph-named", "missing-file", "tied", _set("config.json", llm_model="other.mnn")),
    # settings
    Fault("config-cut", "bad-json", "tied", _cut("config.json", 0.6)),
    Fault("config-a-list", "bad-json", "tied", _write("config.json", "[]")),
    Fault("llm-config-empty", "bad-json", "tied", _write("llm_config.json", "")),
    Fault("threads-in-words", "bad-setting", "tied", _set("config.json", thread_num="four"), severity="warning"),
    Fault("threads-negative", "bad-setting", "tied", _set("config.json", thread_num=-1), severity="warning"),
    Fault("hidden-size-a-text", "bad-setting", "tied", _set("llm_config.json", hidden_size="128")),
    Fault("hidden-size-gone", "bad-setting", "tied", _set("llm_config.json", hidden_size=None)),
    Fault("hidden-size-wrong", "hidden-size", "tied", _set("llm_config.json", hidden_size=64)),
    Fault("weights-named-by-a-number", "bad-setting", "tied", _set("config.json", llm_weight=7)),
    Fault("mask-of-another-type", "mask-type", "untied", _set("llm_config.json", attention_mask="int")),
    Fault("memory-unknown", "unknown-setting", "tied", _set("config.json", memory="tiny"), severity="warning"),
    Fault("layers-in-words", "bad-setting", "tied", _set("llm_config.json", layer_nums="2"), severity="warning"),
    Fault("sampler-a-number", "bad-setting", "tied", _set("config.json", sampler_type=9), severity="warning"),
    Fault("mask-a-number", "mask-type", "untied", _set("llm_config.json", attention_mask=7)),
    Fault("type-unknown", "unknown-setting", "tied", _set("llm_config.json", attention_type="no"), severity="warning"),
    Fault("temperature-nan", "bad-json", "tied", _with_number("config.json", "temperature", "NaN")),
    Fault("temperature-beyond", "bad-json", "tied", _with_number("config.json", "temperature", "1e999")),
    Fault("whole-number-beyond", "bad-json", "tied", _with_number("config.json", "seed", "9" * 400)),
    Fault("half-a-surrogate-pair", "bad-json", "tied", _with_number("config.json", "prompt", '"\\ud83d"')),
    Fault("chunk-of-one", "chunk", "tied", _set("config.json", chunk=1)),
    Fault("chunk-negative", "chunk", "tied", _set("config.json", chunk=-3)),
    Fault("chunk-short", "chunk", "tied", _set("config.json", chunk=16), severity="warning"),
    Fault("attention-mode-garbling", "attention-mode", "tied", _set("config.json", attention_mode=99)),
    Fault("attention-mode-by-its-old-name", "attention-mode", "tied", _set("config.json", quant_qkv=4)),
    Fault(
        "attention-mode-unknown", "unknown-setting", "tied", _set("config.json", attention_mode=-1), severity="warning"
    ),
    Fault("int8-keys-of-many-prompts", "int8-keys", "tied", _set("config.json", attention_mode=9, reuse_kv=True)),
    Fault("int8-keys-in-chunks", "int8-keys", "tied", _set("config.json", attention_mode=10, chunk=128)),
    Fault("turbo-unscaled", "attention-mode", "tied", _set("config.json", attention_mode=14)),
    Fault(
        "turbo-in-halves",
        "turbo-precision",
        "tied",
        _turbo_in_halves,
        severity="warning",
    ),
    Fault("top-k-in-words", "bad-setting", "tied", _set("config.json", top_k="many")),
    Fault("deepstack-of-another-model", "missing-part", "tied", _set("llm_config.json", has_deepstack=True)),
    Fault("ple-of-another-model", "missing-part", "tied", _set("llm_config.json", ple_embed_file="ple.bin")),
    Fault("talker-of-another-model", "missing-part", "tied", _set("llm_config.json", has_talker=True)),
    Fault("mrope-of-another-model", "positions", "tied", _set("llm_config.json", is_mrope=True)),
    Fault("eagle-without-its-graph", "missing-file", "tied", _set("config.json", speculative_type="eagle")),
    # the graph as a file
    Fault("graph-cut-by-a-byte", "graph-length", "tied", _cut_by("llm.mnn", 1), severity="warning"),
    Fault("graph-cut-by-a-word", "bad-graph", "tied", _cut_by("llm.mnn", 4)),
    Fault("graph-empty", "bad-graph", "tied", _write("llm.mnn", "")),
    Fault("graph-cut", "bad-graph", "tied", _cut("llm.mnn", 0.7)),
    Fault("graph-is-json", "bad-graph", "tied", _write("llm.mnn", '{"oplists": []}' * 40)),
    Fault("graph-root-flipped", "bad-graph", "tied", _flip_graph(2, 3)),
    # the graph's inputs and tensors
    Fault(
        "logits-index-cut",
        "dangling-tensor",
        "tied",
        edit=_both(_without("logits_index"), _rename("logits_index", "x")),
    ),
    Fault("logits-index-renamed", "unfed-input", "tied", edit=_rename("logits_index", "last_token")),
    Fault("logits-index-undeclared", "undeclared-input", "tied", edit=_without("logits_index"), severity="warning"),
    Fault("logits-index-before-3-1", "unfed-input", "tied", edit=lambda document: None, engine="3.0.5"),
    Fault("input-ids-renamed", "unfed-input", "untied", edit=_rename("input_ids", "tokens")),
    Fault("mask-renamed", "unfed-input", "tied", edit=_rename("attention_mask", "mask")),
    Fault("linear-cut-out", "dangling-tensor", "tied", edit=_without(Q)),
    Fault("logits-renamed", "no-logits", "tied", edit=_rename("logits", "scores")),
    # ranges
    Fault("weights-cut", "weights-cut", "tied", _cut("llm.mnn.weight", 0.9)),
    Fault("weights-empty", "weights-cut", "untied", _cut("llm.mnn.weight", 0)),
    Fault(
        "weights-a-byte-short",
        "weights-cut",
        "untied",
        lambda f: os.truncate(f / WEIGHT_FILE, (f / WEIGHT_FILE).stat().st_size - 1),
    ),
    Fault("weights-too-long", "weights-unclaimed", "tied", _append("llm.mnn.weight", 64), severity="warning"),
    Fault("range-into-neighbor", "weights-overlap", "tied", edit=_external(Q, 0, lambda offset: offset - 64)),
    Fault("range-negative", "bad-range", "tied", edit=_external(Q, 0, lambda offset: -offset)),
    Fault("range-of-nothing", "bad-range", "tied", edit=_external(Q, 1, lambda length: 0)),
    Fault("range-not-named", "bad-range", "tied", edit=_linear(Q, lambda main: main["external"].clear())),
    Fault("norm-of-nothing", "bad-range", "tied", edit=_norm_external(lambda ranges: ranges.__setitem__(1, 0))),
    Fault("norm-of-half", "bad-range", "tied", edit=_norm_external(lambda ranges: ranges.__setitem__(1, 256))),
    Fault("bias-lost", "weights-unclaimed", "tied", edit=_external(Q, 3, lambda length: 0), severity="warning"),
    Fault("range-beyond", "weights-cut", "tied", edit=_external(Q, 0, lambda offset: offset + (1 << 40))),
    # records
    Fault("weights-of-another-model", "weights-foreign", "tied", _shuffled),
    Fault("record-header-flipped", "weights-foreign", "untied", _poke(_start(Q), b"\x05")),
    Fault("bits-declared-wrong", "bits-declared", "tied", edit=_quant(Q, aMaxOrBits=4), severity="warning"),
    Fault("record-cut-short", "record-length", "tied", edit=_external(Q, 1, lambda length: length - 64)),
    Fault(
        "one-bit-symmetric",
        "one-bit-symmetric",
        "tied",
        _poke(_value_count(Q), b"\x02"),
        edit=_quant(Q, aMaxOrBits=1, readType=0, aMin=0),
    ),
    Fault("seven-bits", "width", "tied", _poke(_value_count(Q), b"\x80"), edit=_quant(Q, aMaxOrBits=7)),
    Fault("zero-points-miscounted", "scales", "tied", edit=_quant(Q, readType=999), severity="warning"),
    Fault("symmetric-declared-asymmetric", "scales", "tied", edit=_linear(Q, _half_the_scales)),
    Fault("block-does-not-divide", "block", "tied", edit=_linear(Q, _three_blocks)),
    Fault("scales-of-another-width", "scales", "tied", edit=_quant(Q, scaleStorage="FP32")),
    Fault("half-scales-before-3-6", "half-scales", "tied", edit=lambda document: None, engine="3.5.0"),
    # numbers
    Fault("scale-nan", "bad-numbers", "tied", _poke(_scales(Q), b"\x00\x7e")),
    Fault("norm-flipped", "bad-numbers", "tied", _poke(_norm, b"\x00\x00\x80\x7f")),
    # tie
    Fault("tie-bits", "tie-bits", "tied", _tie(quant_bit=4)),
    Fault("tie-of-two-bits", "tie-width", "tied", _tie(quant_bit=2)),
    Fault("tie-block", "tie-block", "tied", _tie(quant_block=32)),
    Fault("tie-block-odd", "tie-block", "tied", _tie(quant_block=48)),
    Fault("tie-offset", "tie-offset", "tied", _tie(weight_offset=lambda offset: offset + 1)),
    Fault("tie-scales-elsewhere", "tie-scales", "tied", _tie(alpha_offset=lambda offset: offset - 2)),
    Fault("tie-scales-of-another-width", "tie-scales", "tied", _tie(alpha_dtype="fp32")),
    Fault("tie-in-a-file-of-its-own", "missing-file", "tied", _tie(weight_offset=0)),
    Fault("tie-null", "tie-malformed", "untied", _with_number("llm_config.json", "tie_embeddings", "null")),
    Fault("tie-in-the-old-form", "tie-scales", "tied", _tie_list()),
    Fault("tie-list-cut", "tie-malformed", "tied", _tie_list(cut=3)),
    Fault("tie-a-text", "tie-malformed", "tied", _set("llm_config.json", tie_embeddings="yes")),
    Fault("tie-object-before-3-6", "tie-form", "tied", edit=lambda document: None, engine="3.4.1"),
    # checksums
    Fault("weight-flipped", "checksum", "tied", _after_checksums(_flip_weight)),
    Fault("graph-cut-by-a-byte-since", "checksum", "tied", _after_checksums(_cut_by("llm.mnn", 1))),
    Fault("tokenizer-gone-on", "checksum", "tied", _after_checksums(_append("tokenizer.mtok", 1))),
    Fault(
        "llm-config-changed-since",
        "checksum",
        "tied",
        _after_checksums(_set("llm_config.json", jinja={"chat_template": "{{ messages }}"})),
        severity="warning",
    ),
    Fault(
        "setting-renamed-since",
        "missing-setting",
        "tied",
        _after_checksums(_with_text("config.json", '"thread_num"', '"thread_nul"')),
        severity="warning",
    ),
    Fault(
        "checksums-changed",
        "bad-checksums",
        "tied",
        _after_checksums(_with_text("checksums.json", '"bytes": ', '"bytes": 1')),
        severity="warning",
    ),
    Fault("checksums-cut", "bad-checksums", "tied", _after_checksums(_cut("checksums.json", 0.5)), severity="warning"),
    # versions
    Fault("c4-before-3-6-1", "c4-fusion", "untied", edit=lambda document: None, engine="3.6.0"),
    # embedding and tokenizer
    Fault("embedding-cut", "embedding-size", "untied", _half_embedding),
    Fault(
        "embedding-of-another-width", "embedding-size", "untied", _append("embeddings_bf16.bin", 6), severity="warning"
    ),
    Fault(
        "embedding-too-long", "embedding-size", "untied", _append("embeddings_bf16.bin", 2 * 172), severity="warning"
    ),
    Fault("tokenizer-of-a-larger-model", "tokenizer-size", "tied", _old_tokenizer),
    Fault("tokenizer-of-a-smaller-model", "tokenizer-size", "tied", _small_tokenizer, severity="warning"),
    Fault("tokenizer-cut", "bad-tokenizer", "tied", _cut("tokenizer.mtok", 0.5)),
    Fault("tokenizer-is-json", "bad-tokenizer", "tied", _write("tokenizer.mtok", '{\n"version":\n"1.0"\n}\n')),
    Fault("tokenizer-without-a-stop", "no-stop", "tied", _endless_tokenizer, severity="warning"),
)
