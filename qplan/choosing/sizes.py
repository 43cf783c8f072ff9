"""Bytes that every plan ships: read from a run's exported graph, or estimated before there is one."""

from __future__ import annotations

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes, estimate_fixed, fixed_embedding
from qplan.formats import INT8
from qplan.mnn.build.skeleton import Skeleton, predict_files
from qplan.run.folder import RunFolder
from qplan.run.skeleton_record import SkeletonRecord

_GRAPH_SLACK_BYTES = 64
"""Allowance for alignment and shared tables: built graphs were 20 to 52 bytes larger than the sum of their parts."""


def fixed_bytes(skeleton: Skeleton, card: ModelCard) -> FixedBytes:
    """Bytes that every plan ships, with the graph at its largest: every linear stored as integers.

    An fp16 op takes fewer bytes, so no plan's graph is larger.

    Args:
        skeleton: the exported model.
        card: the model, which says whether its embedding is planned.
    """
    files = predict_files(skeleton, {op.name: INT8 for op in skeleton.ops})
    graph = files.graph + _GRAPH_SLACK_BYTES
    return FixedBytes(skeleton.fixed_bytes, fixed_embedding(card, skeleton.embedding_bytes), graph, exact=True)


def run_fixed_bytes(run: RunFolder, card: ModelCard, *, c4: bool = True) -> FixedBytes:
    """Bytes that every plan of a run ships: exact after the first emit, an estimate before.

    Args:
        run: a finished analysis.
        card: its model.
        c4: whether the graph has the fusion that engines before 3.6.1 crash on.
    """
    folder, path = run.skeleton_for(c4=c4)
    record = SkeletonRecord.kept(path) if folder.is_dir() else None
    if record is not None and record.model == card.sha256:
        return fixed_bytes(Skeleton.open(folder), card)
    return estimate_fixed(card)


def unfolded_fixed_bytes(run: RunFolder, card: ModelCard) -> FixedBytes | None:
    """Fixed bytes of the model before folding, which uniform exports are made from; None if it was not exported."""
    folder, path = run.skeleton_for(unfolded=True)
    return fixed_bytes(Skeleton.open(folder), card) if folder.is_dir() and SkeletonRecord.kept(path) else None
