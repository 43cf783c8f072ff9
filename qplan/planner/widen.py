"""Formats that lose the same, the wider one first: what nothing speaks against is kept."""

from __future__ import annotations

from collections.abc import Sequence

from qplan.planner.problem import Choice, Problem


def widened(problem: Problem, picks: Sequence[int]) -> tuple[int, ...]:
    """The picks with wider formats where these lose no more and the limits leave room, small groups first.

    Losses of two widths are equal where their order could not be told from noise, see `qplan.run.monotone`. The solver
    then takes the smaller one, and bytes may be left over.

    Args:
        problem: the choices, their losses and the limits.
        picks: within these limits.
    """
    program, found = problem.program(), list(picks)
    used = [sum(row.costs[group][pick] for group, pick in enumerate(found)) for row in program.rows]
    for group in sorted(range(len(found)), key=lambda index: problem.groups[index].weights):
        choices = problem.groups[group].choices
        here = found[group]
        for pick in sorted(range(len(choices)), key=lambda index: choices[index].format.bits, reverse=True):
            if not _is_wider(choices[pick], choices[here]):
                continue
            more = [row.costs[group][pick] - row.costs[group][here] for row in program.rows]
            if all(use + add <= row.limit for use, add, row in zip(used, more, program.rows, strict=True)):
                used = [use + add for use, add in zip(used, more, strict=True)]
                found[group] = pick
                break
    return tuple(found)


def _is_wider(one: Choice, other: Choice) -> bool:
    """Whether a choice is the same as another but for its width, and loses no more."""
    a, b = one.format, other.format
    alike = a.is_float or (a.block, a.symmetric, a.scale_bits) == (b.block, b.symmetric, b.scale_bits)
    return a.bits > b.bits and alike and one.loss <= other.loss
