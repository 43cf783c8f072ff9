"""Patterns on tensor names, and the pins and least widths that users give with them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.tensors import TensorGroup


def matching(pattern: str, names: Sequence[str], option: str) -> tuple[str, ...]:
    """Names that a shell pattern matches; a pattern may also leave out leading parts: ``q_proj``, ``0.mlp.*``.

    A pattern that is a name matches that name only.

    Raises:
        InputError: nothing matches; the message gives similar names.
    """
    if pattern in names:
        return (pattern,)
    found = tuple(name for name in names if matches(pattern, name))
    if not found:
        bare = pattern.strip("*.")
        near = [name for name in names if bare and bare in name][:3]
        near = near or difflib.get_close_matches(bare, names, n=3, cutoff=0.3) or list(names[:3])
        msg = f"{option} {pattern!r} matches no tensor; similar names: {', '.join(near)}"
        raise InputError(msg)
    return found


def matches(pattern: str, name: str) -> bool:
    """Whether a shell pattern, which may leave out leading parts, matches a name."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def pinned_formats(groups: Sequence[TensorGroup], pins: Mapping[str, QuantFormat]) -> dict[str, QuantFormat]:
    """Pinned format by group name.

    Raises:
        InputError: a pattern matches nothing, or two patterns pin one group to different formats.
    """
    result: dict[str, tuple[str, QuantFormat]] = {}
    for pattern, fmt in pins.items():
        for group in _groups_matching(groups, pattern, "--pin"):
            earlier = result.setdefault(group, (pattern, fmt))
            if earlier[1] != fmt:
                msg = f"{group} is pinned to {earlier[1]} by {earlier[0]!r} and to {fmt} by {pattern!r}; drop one"
                raise InputError(msg)
    return {group: fmt for group, (_, fmt) in result.items()}


def least_bits(groups: Sequence[TensorGroup], min_bits: Mapping[str, int]) -> dict[str, int]:
    """Least width by group name: the largest of all patterns that match.

    Raises:
        InputError: a pattern matches nothing.
    """
    result: dict[str, int] = {}
    for pattern, bits in min_bits.items():
        for group in _groups_matching(groups, pattern, "--min-bits"):
            result[group] = max(bits, result.get(group, 0))
    return result


def _groups_matching(groups: Sequence[TensorGroup], pattern: str, option: str) -> tuple[str, ...]:
    owner = {group.name: group.name for group in groups}
    owner |= {member.name: group.name for group in groups for member in group.members}
    return tuple(dict.fromkeys(owner[name] for name in matching(pattern, list(owner), option)))
