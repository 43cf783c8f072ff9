"""Continuations to score, and which of them one pass of the engine answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qplan.errors import InputError


@dataclass(frozen=True)
class Continuation:
    """Tokens to score after others."""

    inputs: tuple[int, ...]
    """What the engine sees: the context and the continuation but for its last token."""
    targets: tuple[int, ...]
    """The continuation: the last target follows the last input."""

    @property
    def wanted(self) -> list[tuple[int, int]]:
        """Positions of the inputs, each with the token that is scored after it."""
        start = len(self.inputs) - len(self.targets)
        return [(start + place, token) for place, token in enumerate(self.targets)]


@dataclass(frozen=True)
class Pass:
    """One sequence for the engine, and the continuations that it answers: their inputs are where it begins."""

    inputs: tuple[int, ...]
    members: tuple[int, ...]
    """Places of these continuations in the list."""


def continuation(context: Sequence[int], targets: Sequence[int], longest: int) -> Continuation:
    """What is scored of a context and a continuation; a context that is too long loses its beginning.

    Args:
        context: at least one token.
        targets: the continuation.
        longest: tokens that the engine can see.

    Raises:
        InputError: a continuation without tokens, or longer than that, or no context.
    """
    if not context or not targets:
        msg = f"a context of {len(context)} tokens and a continuation of {len(targets)}: both need one at least"
        raise InputError(msg)
    if len(targets) > longest:
        msg = f"a continuation of {len(targets):,} tokens exceeds the context of {longest:,}; score it in pieces"
        raise InputError(msg)
    seen = [*context, *targets][-(longest + 1) :]
    return Continuation(tuple(seen[:-1]), tuple(targets))


def shared_passes(continuations: Sequence[Continuation]) -> list[Pass]:
    """The fewest passes that answer all, longest first: what a model sees later does not change what it said before.

    The answers of a question share one if each is a single token, such as A to D; so do a text and its beginning.
    """
    groups: list[tuple[tuple[int, ...], list[int]]] = []
    order = sorted(range(len(continuations)), key=lambda place: continuations[place].inputs, reverse=True)
    for place in order:  # what begins like an entry stands right after it
        inputs = continuations[place].inputs
        if groups and groups[-1][0][: len(inputs)] == inputs:
            groups[-1][1].append(place)
        else:
            groups.append((inputs, [place]))
    found = [Pass(inputs, tuple(sorted(members))) for inputs, members in groups]
    return sorted(found, key=lambda one: -len(one.inputs))
