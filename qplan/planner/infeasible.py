"""Why there is no plan, and the nearest budget for which there is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from qplan.errors import InfeasibleError
from qplan.formats import INT_BITS
from qplan.planner.budget import Budget
from qplan.planner.problem import FILE_BYTES, Problem
from qplan.planner.program import Program
from qplan.planner.solver import solve


def infeasible(problem: Problem, budget: Budget, fixed_bytes: int, *, restricted: bool) -> InfeasibleError:
    """Compose the error for a problem without a solution.

    Args:
        problem: what was asked.
        budget: its budget, as the user wrote it.
        fixed_bytes: what ships besides the linear records.
        restricted: whether pins or least widths were given.
    """
    smallest = solve(problem.smallest_program())
    if not smallest.picks:
        return _conflict(problem, restricted=restricted)
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
    if problem.resources:
        remedies.append("raise the limit on " + " or ".join(resource.name for resource in problem.resources))
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
    """Bytes for people, in millions or thousands."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _rule_binds(problem: Problem, picks: Sequence[int]) -> bool:
    """Whether a head would be smaller without the rule."""
    return bool(problem.logits_bits) and any(
        group.is_head and any(choice.bytes < group.choices[pick].bytes for choice in group.choices)
        for group, pick in zip(problem.groups, picks, strict=True)
    )


def _conflict(problem: Problem, *, restricted: bool) -> InfeasibleError:
    """No plan of any size: another limit, or the logits rule against pins."""
    program = problem.smallest_program()
    for resource in problem.resources:
        alone = _least(program, resource.name)
        if alone is None or alone > resource.limit:
            least = "" if alone is None else f", {_amount(alone, resource.unit)}"
            limit = _amount(resource.limit, resource.unit)
            msg = f"the limit on {resource.name}, {limit}, is below what any plan can reach{least}"
            return InfeasibleError(f"{msg}; raise it or add formats")
    if problem.resources:
        names = " and ".join(resource.name for resource in problem.resources)
        return InfeasibleError(f"the limits on {names} cannot hold together; raise one of them")
    remedy = "loosen --pin or --min-bits, or" if restricted else "add fp16 to --formats, or"
    msg = (
        "the logits rule cannot hold: at every width that the head may take, the mean width of the other tensors is "
        f"above it; {remedy} turn the rule off with --logits-bits 0"
    )
    return InfeasibleError(msg)


def _amount(value: int, unit: str) -> str:
    """A cost for people; units such as ``1e-12 nats`` are multiplied out."""
    scale, _, name = unit.partition(" ")
    return f"{value * float(scale):.4g} {name}" if name else f"{value:,} {unit}"


def _least(program: Program, name: str) -> int | None:
    """The least that a plan can use of one row's resource, with all other rows in force."""
    row = next(row for row in program.rows if row.name == name)
    values = tuple(tuple(float(cost) for cost in costs) for costs in row.costs)
    others = tuple(other for other in program.rows if other.name not in (name, FILE_BYTES))
    found = solve(replace(program, values=values, rows=others))
    return row.used(found.picks) if found.picks else None
