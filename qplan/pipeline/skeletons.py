"""The exported graph of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qplan.artifact import read_json, write_json
from qplan.mnn.exporter import export_skeleton
from qplan.mnn.exporter_source import find_exporter
from qplan.mnn.skeleton import Skeleton
from qplan.model.load import LoadedModel
from qplan.pipeline.runs import Run
from qplan.pipeline.sizes import SKELETON_KIND, SKELETON_SCHEMA

Say = Callable[[str], None]


def run_skeleton(run: Run, loaded: LoadedModel, llmexport: Path | None, say: Say) -> Skeleton:
    """The exported graph of this very model by this very exporter: the one in the run folder, or a new one.

    Raises:
        ToolError: the exporter failed.
    """
    exporter = find_exporter(llmexport).version
    inputs = {"model": loaded.card.sha256, "exporter": exporter}
    kept = run.skeleton.is_dir() and run.skeleton_record.is_file()
    if kept and read_json(run.skeleton_record, SKELETON_KIND, SKELETON_SCHEMA)["inputs"] == inputs:
        return Skeleton.open(run.skeleton)
    run.skeleton_record.unlink(missing_ok=True)
    say(f"exporting the graph with {exporter}")
    skeleton = export_skeleton(loaded.folder, run.skeleton, llmexport=llmexport, replace=True)
    write_json(run.skeleton_record, SKELETON_KIND, SKELETON_SCHEMA, inputs, {})
    return skeleton
