"""Which tensors share one format: fused ones, and those that the user joins by pattern."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from qplan.errors import InputError
from qplan.model.card import ModelCard
from qplan.planner.patterns import matching
from qplan.tensors import TensorGroup, TensorSpec

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Kinds that MNN after 3.6.1 computes as one op where their formats agree: they read the same input."""

LAYER = "{layer}"
"""In a group's pattern: a group for every layer."""


def make_groups(card: ModelCard, patterns: Sequence[str] = (), *, fused: bool = False) -> tuple[TensorGroup, ...]:
    """Join tensors into groups; every other tensor is a group of its own.

    Args:
        card: the model.
        patterns: the tensors that one matches share a format; with ``{layer}`` in it, those of one layer do.
        fused: whether q, k, v and gate, up of a layer share a format.

    Raises:
        InputError: a pattern matches nothing or a single tensor, or two groups want the same tensor.
    """
    joined = [group for pattern in patterns for group in _by_pattern(card, pattern)]
    joined += _fused(card) if fused else []
    owner: dict[str, TensorGroup] = {}
    for group in joined:
        for member in group.members:
            other = owner.setdefault(member.name, group)
            if other is not group:
                msg = f"{member.name} is in two groups, {other.name!r} and {group.name!r}; make them one or drop one"
                raise InputError(msg)
    groups = (owner.get(spec.name, TensorGroup(spec.name, (spec,))) for spec in card.tensors)
    return tuple({group.name: group for group in groups}.values())


def _by_pattern(card: ModelCard, pattern: str) -> list[TensorGroup]:
    names = [spec.name for spec in card.tensors]
    if LAYER not in pattern:
        return [_group(card, pattern, matching(pattern, names, "--group"))]
    found = []
    for layer in sorted({spec.layer for spec in card.tensors if spec.layer is not None}):
        inside = [spec.name for spec in card.tensors if spec.layer == layer]
        filled = pattern.replace(LAYER, str(layer))
        found.append(_group(card, filled, matching(filled, inside, "--group")))
    return found


def _group(card: ModelCard, name: str, members: tuple[str, ...]) -> TensorGroup:
    if len(members) < 2:
        msg = f"--group {name!r} matches only {members[0]}: a group needs two tensors or more"
        raise InputError(msg)
    return TensorGroup(name, tuple(card.tensor(member) for member in members))


def _fused(card: ModelCard) -> list[TensorGroup]:
    """Groups of tensors with the same parent and kinds of one of `FUSED`."""
    families: dict[tuple[str, tuple[str, ...]], list[TensorSpec]] = defaultdict(list)
    for spec in card.tensors:
        for kinds in FUSED:
            if spec.kind in kinds:
                families[spec.name.rpartition(".")[0], kinds].append(spec)
    found = [
        TensorGroup(f"{parent}.{'+'.join(spec.kind for spec in members)}", tuple(members))
        for (parent, _), members in families.items()
        if len(members) > 1
    ]
    if not found:
        have = ", ".join(sorted({spec.kind for spec in card.tensors}))
        msg = f"--group-fused: the model has no q/k/v or gate/up to fuse, its tensors are {have}"
        raise InputError(msg)
    return found
