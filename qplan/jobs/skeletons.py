"""The exported graph of a run."""

from __future__ import annotations

from pathlib import Path

from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.exporter_source import find_exporter
from qplan.mnn.build.skeleton import Skeleton
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
) -> Skeleton:
    """The exported graph of this very model by this very exporter: the one in the run folder, or a new one.

    Args:
        run: where it is kept.
        loaded: the model.
        llmexport: an MNN checkout whose exporter to use; None for the PyPI package.
        say: told what is being done.
        c4: with the fusion that engines before 3.6.1 crash on.
        unfolded: whether it is the model before folding, which is kept apart.

    Raises:
        ToolError: the exporter failed.
    """
    exporter = find_exporter(llmexport).version
    made_from = SkeletonRecord(loaded.card.sha256, exporter)
    folder, record = run.skeleton_for(c4=c4, unfolded=unfolded)
    kept = folder.is_dir() and record.is_file()
    if kept and SkeletonRecord.read(record) == made_from:
        return Skeleton.open(folder)
    record.unlink(missing_ok=True)
    say(f"exporting the graph with {exporter}")
    scale = None if loaded.embedding_scale is None else loaded.embedding_scale.cpu().numpy()
    skeleton = export_skeleton(loaded.folder, folder, llmexport=llmexport, replace=True, c4=c4, input_scale=scale)
    made_from.write(record)
    return skeleton
