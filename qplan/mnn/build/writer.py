"""Builds a runnable MNN folder from an exported one and stored tensors, without another export."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qplan.artifact import new_folder, write_text
from qplan.errors import InputError, ToolError
from qplan.formats import FP16, QuantFormat
from qplan.mnn.build.embedding_file import write_embedding
from qplan.mnn.build.skeleton import MARKER, Skeleton
from qplan.mnn.build.weights import write_weights
from qplan.mnn.checksums import write_checksums
from qplan.mnn.files import (
    CHECKSUMS_FILE,
    CONFIG_FILE,
    CONTEXT_KEY,
    EMBEDDING_FILE,
    EMBEDDING_FILES,
    EMBEDDING_KEY,
    EXPORT_ARGS_FILE,
    GRAPH_FILE,
    GRAPH_JSON_FILE,
    LLM_CONFIG_FILE,
    WEIGHT_FILE,
)
from qplan.mnn.graph.binary import read_linears
from qplan.mnn.graph.converter import json_to_graph
from qplan.mnn.graph.json_graph import read_document
from qplan.mnn.graph.linear import Linear
from qplan.mnn.graph.patch import patch_graph
from qplan.mnn.graph.tie import TIE_KEY, TieForm, TieRecord, check_tied
from qplan.mnn.runtime import ATTENTION_MODE, ATTENTION_SCALE, RuntimeConfig
from qplan.rounding import IntTensor, StoredTensor
from qplan.tensors import TensorSpec

_NOT_COPIED = frozenset(
    {GRAPH_FILE, GRAPH_JSON_FILE, WEIGHT_FILE, CONFIG_FILE, LLM_CONFIG_FILE, CHECKSUMS_FILE, MARKER, EXPORT_ARGS_FILE}
)

_SCALE_TOLERANCE = 1e-5
"""Of one over the root of a head's width, which exporters write where it is no binary fraction."""

Store = Callable[[str, QuantFormat], StoredTensor | None]
"""Stores a tensor, by its name, in a format, such as ``Rounder.store``; None leaves it out, see `StoreOp`."""


def build_model(
    skeleton: Skeleton,
    tensors: Sequence[TensorSpec],
    formats: Mapping[str, QuantFormat],
    store: Store,
    out: Path,
    *,
    tie_form: TieForm = "dict",
    runtime: RuntimeConfig | None = None,
    context: int | None = None,
    replace: bool = False,
) -> tuple[Linear, ...]:
    """Write a runnable folder, and read its graph back to prove that it holds what was asked for.

    Biases, norms, constants and tokenizer come from the skeleton, and so does an untied embedding unless it gets
    integers. The folder appears whole or not at all.

    Args:
        skeleton: the exported model.
        tensors: one for every op of the skeleton, and an untied embedding if it is planned.
        formats: format by tensor name.
        store: called once for every tensor, in file order: one at a time is in memory.
        out: folder to make.
        tie_form: how ``llm_config.json`` describes a tied embedding.
        runtime: settings for ``config.json``; None keeps the exporter's (memory low, 4 threads).
        context: longest sequence in tokens that the model is good for, which ``qplan.Engine`` holds to; None to leave
            it open.
        replace: replace an existing folder, at the last moment.

    Returns:
        The linears as read back from the built graph.

    Raises:
        InputError: missing or extra names, a tensor of another shape, a format that a tied head cannot have, or
            ``out`` exists.
        ToolError: the converter failed, or the graph reads back differently.
    """
    given = [spec for spec in tensors if spec.name in formats]
    chosen = {spec.op_name: (spec.name, formats[spec.name]) for spec in given if not spec.is_embedding}
    apart = [spec for spec in given if spec.is_embedding and not formats[spec.name].is_float]
    skeleton.check_names(chosen)
    if skeleton.tied_op is not None:
        check_tied(skeleton.tied_op, chosen[skeleton.tied_op][1], tie_form)
    with new_folder(out, replace=replace) as draft:
        written = write_weights(skeleton, lambda op_name: store(*chosen[op_name]), draft / WEIGHT_FILE)
        tie = written.tie
        for spec in apart:
            tie = _write_embedding(skeleton, spec, formats[spec.name], store, draft)
        _write_configs(skeleton.folder, draft, tie, tie_form, runtime=runtime, context=context)
        document = read_document(skeleton.folder / GRAPH_JSON_FILE)
        patch_graph(document, written.formats, written.records, written.moved)
        scratch = draft.with_name(GRAPH_JSON_FILE)
        scratch.write_text(json.dumps(document), encoding="utf-8")
        json_to_graph(scratch, draft / GRAPH_FILE)
        ops = read_linears(draft)
        _check_read_back(ops, written.formats)
        _copy_rest(skeleton.folder, draft, frozenset({EMBEDDING_FILE} if apart else ()))
        write_checksums(draft)
    return ops


def set_runtime(folder: Path, runtime: RuntimeConfig) -> None:
    """Change the settings that a built folder runs with."""
    path = folder / CONFIG_FILE
    settings = json.loads(path.read_text(encoding="utf-8"))
    for key in (ATTENTION_MODE, ATTENTION_SCALE):
        settings.pop(key, None)
    settings |= runtime.to_json()
    write_text(path, json.dumps(settings, ensure_ascii=False, indent=4))
    if runtime.kv is not None and runtime.kv.rotates:
        _leave_scale(folder)


def _leave_scale(folder: Path) -> None:
    """Take the usual scale of attention out of ``llm_config.json``, which goes before ``config.json``.

    Raises:
        InputError: the scale is the model's own.
    """
    path = folder / LLM_CONFIG_FILE
    if not path.is_file():
        return
    model = json.loads(path.read_text(encoding="utf-8"))
    scale = model.pop(ATTENTION_SCALE, None)
    if scale is None:
        return
    width = 1 / scale**2
    if abs(width - round(width)) > _SCALE_TOLERANCE * width:
        msg = f"{path} scales attention by {scale}, which TurboQuant cannot be corrected for; use --kv float, k8 or kv8"
        raise InputError(msg)
    write_text(path, json.dumps(model, ensure_ascii=False, indent=4))
    if (folder / CHECKSUMS_FILE).is_file():
        write_checksums(folder)


def read_context(folder: Path) -> int | None:
    """Longest sequence that a folder says to be good for; None if it leaves that open."""
    found = json.loads((folder / LLM_CONFIG_FILE).read_text(encoding="utf-8")).get(CONTEXT_KEY)
    return found if isinstance(found, int) else None


def set_context(folder: Path, context: int) -> None:
    """Change the longest sequence, in tokens, that a folder says to be good for."""
    path = folder / LLM_CONFIG_FILE
    model = json.loads(path.read_text(encoding="utf-8")) | {CONTEXT_KEY: context}
    write_text(path, json.dumps(model, ensure_ascii=False, indent=4))


def _write_embedding(skeleton: Skeleton, spec: TensorSpec, fmt: QuantFormat, store: Store, draft: Path) -> TieRecord:
    """Write an untied embedding as integers.

    Raises:
        InputError: the exported model has a tied head, or a table of another size.
    """
    exported = spec.bytes_in(FP16)
    if skeleton.tied or skeleton.embedding_bytes != exported:
        msg = (
            f"{spec.name} is to be stored in {fmt}, and {skeleton.folder} has an embedding file of "
            f"{skeleton.embedding_bytes:,} bytes where {exported:,} were expected; export the model again"
        )
        raise InputError(msg)
    tensor = store(spec.name, fmt)
    if not isinstance(tensor, IntTensor):
        msg = f"{spec.name} was to be stored in {fmt} and is not integers"
        raise TypeError(msg)
    return write_embedding(tensor, draft)


def _check_read_back(ops: tuple[Linear, ...], formats: Mapping[str, QuantFormat]) -> None:
    wrong = [op for op in ops if not op.holds(formats[op.name])]
    if wrong or len(ops) != len(formats):
        msg = f"the built graph holds {len(ops)} linears of {len(formats)}; is the converter from another MNN version?"
        if wrong:
            msg = f"{wrong[0].name} was written as {formats[wrong[0].name]} and reads back as {wrong[0]}"
        raise ToolError(msg)


def _write_configs(
    source: Path,
    draft: Path,
    tie: TieRecord | None,
    tie_form: TieForm,
    *,
    runtime: RuntimeConfig | None,
    context: int | None,
) -> None:
    model = json.loads((source / LLM_CONFIG_FILE).read_text(encoding="utf-8"))
    if tie is not None:
        model[TIE_KEY] = dataclasses.replace(tie, form=tie_form).to_json()
    if context is not None:
        model[CONTEXT_KEY] = context
    settings = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    if tie is not None and tie.weight_offset == 0:
        settings[EMBEDDING_KEY] = EMBEDDING_FILES[tie.bits]
    if runtime is not None:
        settings |= runtime.to_json()
    for name, value in ((LLM_CONFIG_FILE, model), (CONFIG_FILE, settings)):
        (draft / name).write_text(json.dumps(value, ensure_ascii=False, indent=4), encoding="utf-8")


def _copy_rest(source: Path, draft: Path, replaced: frozenset[str]) -> None:
    """Copy tokenizer, embedding and the export's other files; big tables as hard links where possible."""
    for path in sorted(source.iterdir()):
        if path.name in _NOT_COPIED | replaced or not path.is_file():
            continue
        if path.suffix == ".bin":
            try:
                os.link(path, draft / path.name)
            except OSError:  # another file system
                shutil.copyfile(path, draft / path.name)
        else:
            shutil.copyfile(path, draft / path.name)
