"""Exports the graph of a run's model, or reuses the exported one."""

from __future__ import annotations

from pathlib import Path

from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.exporter_source import find_exporter
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import read_context, set_context
from qplan.model.load import LoadedModel
from qplan.run.folder import RunFolder
from qplan.run.skeleton_record import SkeletonRecord
from qplan.settings import Say


def run_skeleton(
    run: RunFolder,
    loaded: LoadedModel,
    llmexport: Path | None,
    say: Say,
    *,
    c4: bool = True,
    unfolded: bool = False,
    max_memory_bytes: int | None = None,
) -> Skeleton:
    """The graph of exactly this model by exactly this exporter: from the run folder, or exported now.

    Args:
        run: the run that keeps it.
        loaded: the model.
        llmexport: an MNN checkout whose exporter to use; None for the PyPI package.
        say: called with a line about each step.
        c4: whether to keep the fusion that engines before 3.6.1 crash on.
        unfolded: whether this is the model before folding, which has a folder of its own.
        max_memory_bytes: most memory that the export may take; None for any.

    Raises:
        InputError: it takes more.
        ToolError: the exporter failed.
    """
    exporter = find_exporter(llmexport).version
    made_from = (loaded.card.sha256, exporter)
    context = loaded.card.context
    folder, record = run.skeleton_for(c4=c4, unfolded=unfolded)
    kept = SkeletonRecord.kept(record)
    if kept is not None and (kept.model, kept.exporter) == made_from and folder.is_dir():
        if read_context(folder) != context:
            record.unlink()
            set_context(folder, context)
            SkeletonRecord.of(folder, *made_from).write(record)
        return Skeleton.open(folder)
    record.unlink(missing_ok=True)
    say(f"exporting the graph with {exporter}")
    scale = None if loaded.embedding_scale is None else loaded.embedding_scale.cpu().numpy()
    skeleton = export_skeleton(
        loaded.folder,
        folder,
        llmexport=llmexport,
        replace=True,
        c4=c4,
        input_scale=scale,
        max_memory_bytes=max_memory_bytes,
    )
    if skeleton.whole:
        say(f"{exporter} read and wrote every weight: it works otherwise than the exporters that qplan knows")
    set_context(folder, context)
    SkeletonRecord.of(folder, *made_from).write(record)
    return skeleton
