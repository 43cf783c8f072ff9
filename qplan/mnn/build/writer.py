"""Builds a runnable MNN folder from an exported one and stored tensors, without another export."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from qplan.artifact import new_folder, write_text
from qplan.errors import ToolError
from qplan.formats import QuantFormat
from qplan.mnn.build.skeleton import CONFIG_FILE, LLM_CONFIG_FILE, MARKER, Skeleton
from qplan.mnn.build.tie import Tie, TieForm
from qplan.mnn.build.weights import TensorSource, write_weights
from qplan.mnn.graph.converter import json_to_graph
from qplan.mnn.graph.json_graph import GRAPH_FILE, GRAPH_JSON_FILE, WEIGHT_FILE, GraphOp, read_document, read_ops
from qplan.mnn.graph.patch import patch_graph
from qplan.mnn.runtime import RuntimeConfig

_NOT_COPIED = frozenset(
    {GRAPH_FILE, GRAPH_JSON_FILE, WEIGHT_FILE, CONFIG_FILE, LLM_CONFIG_FILE, MARKER, "export_args.json"}
)


def build_model(
    skeleton: Skeleton,
    tensors: Mapping[str, TensorSource],
    out: Path,
    *,
    tie_form: TieForm = "dict",
    runtime: RuntimeConfig | None = None,
    replace: bool = False,
) -> tuple[GraphOp, ...]:
    """Write a runnable folder, and read its graph back to prove that it holds what was asked for.

    Biases, norms, constants, tokenizer and untied embedding come from the skeleton. The folder appears whole or not
    at all.

    Args:
        skeleton: the exported model.
        tensors: for every op name of the skeleton, and no other, a stored tensor or a function that makes it.
        out: folder to make.
        tie_form: how ``llm_config.json`` describes a tied embedding.
        runtime: settings for ``config.json``; None keeps the exporter's (memory low, 4 threads).
        replace: whether a folder that is there already gives way.

    Returns:
        The linears as read back from the built graph.

    Raises:
        InputError: missing or extra names, a tensor of another shape, a width that a tied head cannot have, or
            ``out`` exists.
        ToolError: the converter failed, or the graph reads back differently.
    """
    skeleton.check_names(tensors)
    with new_folder(out, replace=replace) as draft:
        written = write_weights(skeleton, tensors, draft / WEIGHT_FILE)
        _write_configs(skeleton.folder, draft, written.tie, tie_form, runtime)
        document = read_document(skeleton.folder / GRAPH_JSON_FILE)
        patch_graph(document, written.formats, written.records, written.moved)
        scratch = draft.with_name(GRAPH_JSON_FILE)
        scratch.write_text(json.dumps(document), encoding="utf-8")
        json_to_graph(scratch, draft / GRAPH_FILE)
        ops = read_ops(draft)
        _check_read_back(ops, written.formats)
        _copy_rest(skeleton.folder, draft)
    return ops


def set_runtime(folder: Path, runtime: RuntimeConfig) -> None:
    """Change the settings that a built folder runs with."""
    path = folder / CONFIG_FILE
    settings = json.loads(path.read_text(encoding="utf-8")) | runtime.to_json()
    write_text(path, json.dumps(settings, ensure_ascii=False, indent=4))


def _check_read_back(ops: tuple[GraphOp, ...], formats: Mapping[str, QuantFormat]) -> None:
    wrong = [op for op in ops if not op.holds(formats[op.name])]
    if wrong or len(ops) != len(formats):
        msg = f"the built graph holds {len(ops)} linears of {len(formats)}; is the converter of another MNN version?"
        if wrong:
            msg = f"{wrong[0].name} was written as {formats[wrong[0].name]} and reads back as {wrong[0]}"
        raise ToolError(msg)


def _write_configs(
    source: Path, draft: Path, tie: Tie | None, tie_form: TieForm, runtime: RuntimeConfig | None
) -> None:
    model = json.loads((source / LLM_CONFIG_FILE).read_text(encoding="utf-8"))
    if tie is not None:
        model["tie_embeddings"] = tie.to_json(tie_form)
    settings = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    if runtime is not None:
        settings |= runtime.to_json()
    for name, value in ((LLM_CONFIG_FILE, model), (CONFIG_FILE, settings)):
        (draft / name).write_text(json.dumps(value, ensure_ascii=False, indent=4), encoding="utf-8")


def _copy_rest(source: Path, draft: Path) -> None:
    """Take over tokenizer, embedding and whatever else the export holds; big tables as hard links where possible."""
    for path in sorted(source.iterdir()):
        if path.name in _NOT_COPIED or not path.is_file():
            continue
        if path.suffix == ".bin":
            try:
                os.link(path, draft / path.name)
            except OSError:  # another file system
                shutil.copyfile(path, draft / path.name)
        else:
            shutil.copyfile(path, draft / path.name)
