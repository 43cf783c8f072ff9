"""Whether all is there that a killed pass there and back left, so that the next one goes on from it.

Journal, draft and what lies between layers are files of their own: a machine that loses its power may keep the later of
them and lose the earlier, and people may restore or remove any of them.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from qplan.folding.fold import fold_sites
from qplan.model.boundaries import Boundaries
from qplan.run.fold_draft import FoldDraft
from qplan.sensitivity.analysis import Analysis


def can_go_on(
    analysis: Analysis,
    between: Boundaries,
    kept: int,
    done: int,
    *,
    draft: FoldDraft | None,
    judged: Container[str] | None,
) -> bool:
    """Whether the layers that are finished left all that they should, and those that are not have what they need.

    Args:
        analysis: with the losses that are journaled.
        between: what lies between layers.
        kept: batches that go back, the first ones.
        done: layers that all batches went through on the way there; of no account once the way back has begun.
        draft: what is decided about folding; None if nothing is folded.
        judged: tensors whose moments were kept on the way back; None if none are.
    """
    layers, tied = len(analysis.loaded.layers), analysis.loaded.card.tensor(analysis.loaded.architecture.head).tied
    reached = between.reached(layers)
    needed = set(range(done if reached is None else reached - 1))
    if reached is not None and tied:
        needed.add(layers - 1)  # a tied head is looked at again
    if not all(between.has(layer, range(kept)) for layer in needed):
        return False
    if reached is None:
        return True
    names = set(_finished(analysis, reached))
    sites = fold_sites(analysis.loaded) if draft is not None else ()
    decided = draft is None or all(site.name in draft.losses for site in sites if names & set(site.readers))
    known = judged is None or all(name in judged for name in names)
    return decided and known and _are_journaled(analysis, names, references=not tied)


def _finished(analysis: Analysis, reached: int) -> Iterator[str]:
    """Tensors of the layers that the way back has finished, and of a head that is not tied."""
    for spec in analysis.loaded.card.tensors:
        if not spec.tied and (spec.layer is None or spec.layer >= reached):
            yield spec.name


def _are_journaled(analysis: Analysis, names: Container[str], *, references: bool) -> bool:
    batches, kept = range(len(analysis.batches)), analysis.kept
    if references and not all(batch in kept.references for batch in batches):
        return False
    cells = (
        (name, fmt.name, memory, batch, "gradient")
        for name, fmt, memory in analysis.entries()
        if name in names
        for batch in batches
    )
    return all(cell in kept.measurements for cell in cells)
