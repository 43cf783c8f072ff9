"""Which tensors share a format: experts, fused projections, and whatever the user joins by pattern."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from qplan.card import ModelCard
from qplan.errors import InputError
from qplan.planner.patterns import matches, matching
from qplan.tensors import TensorGroup, TensorSpec

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Kinds of tensors that read the same input, which MNN after 3.6.1 computes as one op if their formats agree."""

PLACEHOLDERS = ("{layer}", "{expert}", "{kind}")
"""Placeholders of a group's pattern: one group per layer, per expert number, per last part of the tensors' names."""


def make_groups(card: ModelCard, patterns: Sequence[str] = (), *, fused: bool = False) -> tuple[TensorGroup, ...]:
    """Join tensors into groups; a tensor that is not joined is a group of its own, unless it belongs to an expert.

    Experts of a layer share one format per kind of matrix unless a pattern says otherwise, since few calibration tokens
    reach a single expert and its loss is poorly known.

    Args:
        card: the model.
        patterns: all tensors that a pattern matches share a format. A pattern with `PLACEHOLDERS` makes one group for
            every way to fill them.
        fused: whether q, k, v and gate, up of a layer share a format.

    Raises:
        InputError: a pattern matches nothing, a single tensor or an untied embedding, or two groups want one tensor.
    """
    joined = [group for pattern in patterns for group in _by_pattern(card, pattern)]
    joined += _fused(card) if fused else []
    owner: dict[str, TensorGroup] = {}
    for group in joined:
        for member in group.members:
            other = owner.setdefault(member.name, group)
            if other is not group:
                msg = f"{member.name} is in two groups, {other.name!r} and {group.name!r}; merge the two or drop one"
                raise InputError(msg)
    for group in _experts(spec for spec in card.tensors if spec.name not in owner):
        owner |= dict.fromkeys((member.name for member in group.members), group)
    groups = (owner.get(spec.name, TensorGroup(spec.name, (spec,))) for spec in card.planned)
    return tuple({group.name: group for group in groups}.values())


def _by_pattern(card: ModelCard, pattern: str) -> list[TensorGroup]:
    """Groups of a pattern: one for every way to fill its placeholders."""
    filled: dict[str, list[TensorSpec]] = defaultdict(list)
    for spec in card.tensors:
        values = {"{layer}": spec.layer, "{expert}": spec.expert, "{kind}": spec.kind}
        used = {place: value for place, value in values.items() if place in pattern}
        if None not in used.values():
            name = pattern
            for place, value in used.items():
                name = name.replace(place, str(value))
            filled[name].append(spec)
    groups = []
    for name, specs in filled.items():
        found = [spec for spec in specs if matches(name, spec.name)]
        # a pattern that singles out an expert takes it out of its layer's group
        if len(found) > 1 or (len(found) == 1 and found[0].expert is not None and name != pattern):
            groups.append(TensorGroup(name, tuple(found)))
        elif found and name == pattern:
            msg = f"--group {name!r} matches only {found[0].name}: a group needs two tensors or more"
            raise InputError(msg)
    if not groups:
        names = [spec.name for spec in card.tensors]
        wild = re.sub("|".join(map(re.escape, PLACEHOLDERS)), "*", pattern)
        own = card.embedding
        if own is not None and matches(wild, own.name) and not any(matches(wild, name) for name in names):
            why = "an untied embedding has formats of its own and shares none"
            msg = f"--group {pattern!r} matches only {own.name}: {why}; give it one with --pin {own.name}=int8"
            raise InputError(msg)
        (only, *_) = matching(wild, names, "--group")
        msg = f"--group {pattern!r} makes no group of two tensors or more; {only} would be the only one"
        raise InputError(msg)
    return groups


def _experts(specs: Iterable[TensorSpec]) -> list[TensorGroup]:
    """Groups of the experts' tensors of one layer and kind."""
    families: dict[tuple[int | None, str], list[TensorSpec]] = defaultdict(list)
    for spec in specs:
        if spec.expert is not None:
            families[spec.layer, spec.kind].append(spec)
    return [
        TensorGroup(re.sub(r"\.\d+\.(\w+)$", r".*.\1", members[0].name), tuple(members))
        for members in families.values()
        if len(members) > 1
    ]


def _fused(card: ModelCard) -> list[TensorGroup]:
    """Groups of tensors that have the same parent and whose kinds are fused, see `FUSED`."""
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
