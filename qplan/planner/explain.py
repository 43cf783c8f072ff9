"""Why a tensor has its format: what each alternative would cost at the budget's price of a byte."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qplan.card import ModelCard
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.planner.planning import picks_of
from qplan.planner.problem import FILE_BYTES, GroupChoices, Problem
from qplan.planner.rules import Rules
from qplan.planner.solver.branching import decided, pivots
from qplan.planner.solver.dominance import Grid, drop_impossible
from qplan.planner.solver.relaxation import relax
from qplan.planner.validate import validate_plan
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable


@dataclass(frozen=True)
class Alternative:
    """One measured, allowed format of the tensor's group."""

    format: QuantFormat
    bytes: int
    loss_nats: float
    marginal_nats_per_byte: float | None
    """Loss saved per byte added, or for smaller formats lost per byte saved; None if bytes are equal."""
    net_nats: float
    """Loss plus the price of its bytes and of its share of other limits, minus that of the cheapest alternative."""


@dataclass(frozen=True)
class Explanation:
    """Why one tensor has its format."""

    tensor: str
    """Hugging Face name."""
    members: tuple[str, ...]
    """The tensors that share the format, this one included."""
    format: QuantFormat
    price_nats_per_byte: float
    """What one more byte of budget is worth: the dual of the linear relaxation; 0 where the budget does not bind."""
    other_prices: dict[str, float]
    """Prices of the other limits that bind, nats per unit, keyed by limit and unit."""
    alternatives: tuple[Alternative, ...]
    """Every allowed format including the planned one, by ascending bytes."""
    next_best: Alternative | None
    """What the group would take if the planned format did not exist; None without alternatives."""

    @property
    def chosen(self) -> Alternative:
        """The planned format among the alternatives."""
        return next(option for option in self.alternatives if option.format == self.format)

    @property
    def sentence(self) -> str:
        """The explanation as text."""
        start = f"{self.tensor} is {self.format}, {self.chosen.loss_nats:.3g} nats in {self.chosen.bytes:,} bytes. "
        if self.next_best is None:
            return start + "It has no other measured format that the rules allow."
        saved = self.chosen.loss_nats - self.next_best.loss_nats
        added = self.next_best.bytes - self.chosen.bytes
        trade = (
            f"Next best is {self.next_best.format}: {added:+,} bytes, {-saved:+.3g} nats"
            + (f" ({saved / added * 1e6:.3g} nats per MB" if added else " (at equal bytes")
            + f"; the budget pays {self.price_nats_per_byte * 1e6:.3g} nats per MB)."
        )
        if self.chosen.net_nats > self.next_best.net_nats:
            return start + trade + " By price alone that would be better; whole bytes or another limit decide."
        return start + trade


def explain(table: SensitivityTable, plan: Plan, tensor: str, *, rules: Rules | None = None) -> Explanation:
    """Explain a tensor's format in a plan; see `explain_all`.

    Raises:
        InputError: no such tensor, or the plan's format of its group is not measured or not allowed by the rules.
        StaleArtifactError: the plan is for another model.
    """
    return explain_all(table, plan, (tensor,), rules=rules)[0]


def explain_all(
    table: SensitivityTable,
    plan: Plan,
    tensors: Sequence[str] | None = None,
    *,
    rules: Rules | None = None,
    limits: Sequence[Ceiling | ResourceLimit] = (),
) -> tuple[Explanation, ...]:
    """Explain the formats of tensors, or of all groups, in a plan.

    Args:
        table: the losses the plan was made from.
        plan: may be edited by hand.
        tensors: Hugging Face names; None for the first tensor of every group.
        rules: the rules that the plan was made under; None for those that it records.
        limits: further limits besides the budget.

    Raises:
        InputError: no such tensor, or the plan's format of its group is not measured or not allowed by the rules.
        StaleArtifactError: the plan is for another model.
    """
    card, rules = table.model, rules or Rules.of(plan)
    validate_plan(plan, card)
    fixed_bytes = plan.files.total - sum(planned.bytes for planned in plan.tensors)
    problem = rules.problem(card, rules.losses(table), plan.budget_bytes - fixed_bytes)
    for limit in limits:
        problem = limit.applied(problem, card)
    owner = {name: index for index, group in enumerate(problem.groups) for name in group.members}
    wanted = [group.members[0] for group in problem.groups] if tensors is None else list(tensors)
    for tensor in wanted:
        if tensor not in owner:
            names = [spec.name for spec in card.planned]
            near = difflib.get_close_matches(tensor, names, n=3, cutoff=0.3) or names[:3]
            msg = f"the plan has no tensor {tensor!r}; similar names: {', '.join(near)}"
            raise InputError(msg)
    prices = _prices_around(problem, picks_of(problem, plan.formats, card))
    return tuple(_explain(problem, owner[tensor], plan, card, tensor=tensor, prices=prices) for tensor in wanted)


def _prices_around(problem: Problem, picks: tuple[int, ...] | None) -> dict[str, float]:
    """Shadow prices with the largest groups fixed to their planned formats, if all planned formats are choices."""
    if picks is None:
        return shadow_prices(problem)
    return shadow_prices(problem, {group: picks[group] for group in pivots(Grid.of(problem.program()))})


def _explain(
    problem: Problem, index: int, plan: Plan, card: ModelCard, *, tensor: str, prices: dict[str, float]
) -> Explanation:
    group = problem.groups[index]
    picks = picks_of(Problem((group,), None, 0), plan.formats, card)
    if picks is None:
        msg = f"{tensor}: {plan.formats[tensor]} is not among its measured and allowed formats; analyze with it"
        raise InputError(msg)
    alternatives = _alternatives(problem, index, picks[0], prices)
    chosen = group.choices[picks[0]].format
    others = [option for option in alternatives if option.format != chosen]
    return Explanation(
        tensor,
        group.members,
        chosen,
        prices.get(FILE_BYTES, 0.0),
        {
            f"{resource.name}, per {resource.unit}": prices[resource.name] * resource.units
            for resource in problem.resources
            if prices.get(resource.name, 0.0) > 0
        },
        alternatives,
        min(others, key=lambda option: option.net_nats, default=None),
    )


def shadow_prices(problem: Problem, picks: Mapping[int, int] | None = None) -> dict[str, float]:
    """What one more unit of each limit is worth, in nats, from the linear relaxation; empty if that is infeasible.

    Args:
        problem: the problem with its limits.
        picks: choices of groups to fix, which should be the largest, see `branching`.
    """
    program = problem.program()
    grid = drop_impossible(decided(Grid.of(program), picks or {}))
    relaxation = relax(grid) if grid.solvable else None
    if relaxation is None:
        return {}
    return {row.name: float(price) for row, price in zip(program.rows, relaxation.prices, strict=True)}


def _alternatives(problem: Problem, index: int, pick: int, prices: dict[str, float]) -> tuple[Alternative, ...]:
    group: GroupChoices = problem.groups[index]
    rows = problem.program().rows
    charged = [  # at the budget's prices, relative to the planned format
        choice.loss + sum(prices.get(row.name, 0.0) * (row.costs[index][i] - row.costs[index][pick]) for row in rows)
        for i, choice in enumerate(group.choices)
    ]
    chosen = group.choices[pick]
    found = [
        Alternative(
            choice.format,
            choice.bytes,
            choice.loss,
            (chosen.loss - choice.loss) / (choice.bytes - chosen.bytes) if choice.bytes != chosen.bytes else None,
            charged[i],
        )
        for i, choice in enumerate(group.choices)
        if choice.format.bits >= (problem.logits_bits if group.is_head else 0) or i == pick
    ]
    least = min(option.net_nats for option in found)
    found = [replace(option, net_nats=option.net_nats - least) for option in found]
    return tuple(sorted(found, key=lambda option: (option.bytes, option.loss_nats)))
