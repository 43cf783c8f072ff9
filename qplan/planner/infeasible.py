"""Why there is no plan, and the nearest budget for which there is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from qplan.errors import InfeasibleError
from qplan.formats import INT_BITS
from qplan.planner.budget import ResolvedBudget
from qplan.planner.problem import FILE_BYTES, Problem, Resource
from qplan.planner.solver.program import Program
from qplan.planner.solver.solver import solve


def infeasible(
    problem: Problem, budget: ResolvedBudget | None, fixed_bytes: int, *, restricted: bool
) -> InfeasibleError:
    """Compose the error for a problem without a solution.

    Args:
        problem: the problem that has no solution.
        budget: its budget, as the user wrote it; None if there is none.
        fixed_bytes: bytes that ship besides the linear records.
        restricted: whether the user gave pins or least widths.
    """
    free = replace(problem, resources=())
    smallest = solve(free.smallest_program())
    if not smallest.picks:
        return _conflict(restricted=restricted)
    fits = problem.limit_bytes is None or problem.picked_bytes(smallest.picks) <= problem.limit_bytes
    if budget is None or fits:
        return _together(problem, budget, fixed_bytes)
    total = problem.picked_bytes(smallest.picks) + fixed_bytes
    remedies = ["raise it"]
    narrowest = min(c.format.bits for group in problem.groups if not group.is_head for c in group.choices)
    narrower = [bits for bits in INT_BITS if bits < narrowest]
    if narrower:
        remedies.append(f"add int{max(narrower)} to --formats")
    if _rule_binds(problem, smallest.picks):
        remedies.append("lower --logits-bits")
    if restricted:
        remedies.append("loosen --pin or --min-bits")
    asked = f"budget {budget.text}"
    if budget.bits is not None or budget.unit.lower() not in ("mb", "gb", "kb"):
        asked += f" = {megabytes(budget.limit_bytes)}"
    found = f"{budget.express(total)}, {total:,} bytes ({describe(problem, smallest.picks)})"
    advice = ", ".join(remedies[:-1]) + (" or " if len(remedies) > 1 else "") + remedies[-1]
    return InfeasibleError(f"{asked} is below the smallest plan, {found}; {advice}")


def describe(problem: Problem, picks: Sequence[int]) -> str:
    """A plan in a few words: ``all int4, head int8 by the logits rule``."""
    sizes: Counter[str] = Counter()
    heads = []
    for group, pick in zip(problem.groups, picks, strict=True):
        name = group.choices[pick].format.name
        if group.is_head:
            heads.append(f"head {name}" + (" by the logits rule" if _rule_binds(problem, picks) else ""))
        else:
            sizes[name] += group.weights
    most = [f"{'all' if len(sizes) == 1 else 'mostly'} {sizes.most_common(1)[0][0]}"] if sizes else []
    return ", ".join(most + heads)


def megabytes(size: int) -> str:
    """A number of bytes as text, in MB or kB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _rule_binds(problem: Problem, picks: Sequence[int]) -> bool:
    """Whether a head could be smaller without the logits rule."""
    return bool(problem.logits_bits) and any(
        group.is_head and any(choice.bytes < group.choices[pick].bytes for choice in group.choices)
        for group, pick in zip(problem.groups, picks, strict=True)
    )


def _conflict(*, restricted: bool) -> InfeasibleError:
    """The error where no plan of any size exists: the logits rule contradicts pins."""
    remedy = "loosen --pin or --min-bits, or" if restricted else "add fp16 to --formats, or"
    msg = (
        "the logits rule cannot hold: at every width that the head may take, the mean width of the other tensors is "
        f"above it; {remedy} turn the rule off with --logits-bits 0"
    )
    return InfeasibleError(msg)


def _together(problem: Problem, budget: ResolvedBudget | None, fixed_bytes: int) -> InfeasibleError:
    """The error where limits other than bytes are to blame: names them, and how far each would have to be raised."""
    rows = {row.name: row for row in problem.program().rows}
    shown = {resource.name: resource for resource in problem.resources}
    nearest = []
    for name, row in rows.items():
        if name not in shown and name != FILE_BYTES:
            continue
        least = _least(problem.program(), name)
        if least is None:
            continue
        if name in shown:
            nearest.append(f"{name} {shown[name].express(least)} instead of {shown[name].express(row.limit)}")
        elif budget is not None:
            total = least + fixed_bytes
            nearest.append(f"a budget of {budget.express(total)} ({total:,} bytes) instead of {budget.text}")
    asked = [f"{name} <= {_limit(resource, rows[name].limit)}" for name, resource in shown.items()]
    files = "; --parity files limits files alone" if any(resource.of for resource in shown.values()) else ""
    asked += [] if budget is None else [f"budget {budget.text}"]
    if len(asked) == 1 and nearest:
        return InfeasibleError(
            f"no plan satisfies {asked[0]}; the nearest is {nearest[0]}. Raise it or add --formats{files}"
        )
    said = f"no plan satisfies {' and '.join(asked)} together; "
    if nearest:
        return InfeasibleError(f"{said}with the other limits unchanged, the nearest is {', or '.join(nearest)}{files}")
    alone = [
        f"{name} {resource.express(least)}"
        for name, resource in shown.items()
        if (least := _least(problem.program(), name, alone=True)) is not None
    ]
    lowest = ", ".join(alone)
    return InfeasibleError(f"{said}raising one of them is not enough. Each on its own can be as low as {lowest}{files}")


def _limit(resource: Resource, counts: int) -> str:
    return resource.express(counts) + (f" (uniform {resource.of}'s)" if resource.of else "")


def _least(program: Program, name: str, *, alone: bool = False) -> int | None:
    """The least that a plan can use of one row's resource, with all other rows in force, or only the logits rule."""
    row = next(row for row in program.rows if row.name == name)
    values = tuple(tuple(float(cost) for cost in costs) for costs in row.costs)
    others = (other for other in program.rows if other.name != name)
    kept = tuple(other for other in others if not alone or other.name.startswith("logits rule"))
    found = solve(replace(program, values=values, rows=kept))
    return row.used(found.picks) if found.picks else None
