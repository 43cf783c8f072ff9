"""From a sensitivity table and a budget to a plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from qplan.cost.file_bytes import FixedBytes, file_bytes, record_bytes
from qplan.cost.target import DEFAULT_TARGET, Target, find_target
from qplan.errors import QplanError
from qplan.formats import QuantFormat
from qplan.model.card import ModelCard
from qplan.planner.budget import Budget, resolve_budget
from qplan.planner.ceiling import Ceiling
from qplan.planner.groups import make_groups
from qplan.planner.infeasible import infeasible
from qplan.planner.limits import Cost, ResourceLimit
from qplan.planner.metric import Metric, loss_of
from qplan.planner.plan import (
    GivenRules,
    LeastBits,
    LogitsRule,
    Pin,
    Plan,
    PlannedLimit,
    PlannedTensor,
    SolverReport,
    UniformPoint,
)
from qplan.planner.problem import ROUTER_FORMAT, Problem, build_problem
from qplan.planner.program import Solution, Status
from qplan.planner.solver import TIME_LIMIT_S, solve
from qplan.planner.uniform import uniform_formats, uniform_loss
from qplan.sensitivity.table import SensitivityTable
from qplan.tensors import Role, TensorGroup

UNIFORM_BITS = {"int4": 4, "int8": 8, "fp16": 16}
"""Uniform exports that every plan is compared with."""


@dataclass(frozen=True)
class Rules:
    """What the user wants besides a budget."""

    groups: tuple[TensorGroup, ...] | None = None
    """Tensors that share one format; None for what `group_patterns` and `fused` say."""
    logits_bits: int = 8
    """The head and a tied embedding have at least this width, and at least the others' mean; 0 for no rule."""
    pins: Mapping[str, QuantFormat] = field(default_factory=dict)
    """Format by pattern."""
    min_bits: Mapping[str, int] = field(default_factory=dict)
    """Least width by pattern."""
    metric: Metric = Metric.kl
    """What is summed and minimised."""
    group_patterns: tuple[str, ...] = ()
    """Patterns whose tensors share a format, see `qplan.planner.groups.make_groups`."""
    fused: bool = False
    """Whether q, k, v and gate, up share a format."""
    target: Target = field(default_factory=partial(find_target, DEFAULT_TARGET))
    """Where the plan runs: formats that are not legal there are not chosen."""
    uniform_scale_bits: int = 16
    """Bits of the scales of the uniform export that the plan is held against; some engines read 32 only."""
    uniform_fixed: FixedBytes | None = None
    """What that export ships whatever its width, if less than a plan: a folded tied head adds an op to the graph."""

    @property
    def restricts(self) -> bool:
        """Whether the user asked for anything."""
        return replace(self, uniform_scale_bits=16, uniform_fixed=None) != Rules()

    @classmethod
    def of(cls, plan: Plan) -> Rules:
        """The rules that a plan was made under."""
        given = plan.given
        return cls(
            logits_bits=plan.logits.min_bits,
            pins={pin.pattern: pin.format for pin in given.pins},
            min_bits={least.pattern: least.bits for least in given.min_bits},
            group_patterns=given.groups,
            fused=given.fused,
            target=find_target(plan.target),
            metric=Metric(given.metric),
        )

    @property
    def given(self) -> GivenRules:
        """What a plan records of them."""
        return GivenRules(
            tuple(Pin(pattern, fmt) for pattern, fmt in self.pins.items()),
            tuple(LeastBits(pattern, bits) for pattern, bits in self.min_bits.items()),
            self.group_patterns,
            self.fused,
            self.metric.value,
        )

    def groups_of(self, card: ModelCard) -> tuple[TensorGroup, ...]:
        """The planning units of a model."""
        return make_groups(card, self.group_patterns, fused=self.fused) if self.groups is None else self.groups

    def losses(self, table: SensitivityTable) -> dict[str, dict[str, float]]:
        """What is minimised, by tensor name and name of a format that is legal on the target.

        Raises:
            InputError: a metric that the table does not hold for every format.
        """
        value = loss_of(self.metric, table)
        return {
            spec.name: {
                name: value(spec.name, name, loss)
                for name, loss in row.items()
                if self.target.legal(spec, QuantFormat.parse(name))
            }
            for spec, row in zip(table.model.tensors, table.losses().values(), strict=True)
        }

    def problem(self, card: ModelCard, losses: Mapping[str, Mapping[str, float]], limit_bytes: int | None) -> Problem:
        """State the problem for a model; see `build_problem`."""
        return build_problem(
            self.groups_of(card),
            losses,
            limit_bytes,
            logits_bits=self.logits_bits,
            pins=self.pins,
            min_bits=self.min_bits,
        )


def make_plan(
    table: SensitivityTable,
    budget_text: str | Sequence[str],
    fixed: FixedBytes,
    *,
    groups: tuple[TensorGroup, ...] | None = None,
    logits_bits: int = 8,
    pins: Mapping[str, QuantFormat] | None = None,
    min_bits: Mapping[str, int] | None = None,
    metric: Metric = Metric.kl,
    rules: Rules | None = None,
    ceilings: Sequence[Ceiling | ResourceLimit] = (),
    minimise: Cost | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> Plan:
    """The plan with the least predicted loss whose files are not larger than the budget.

    Args:
        table: measured losses.
        budget_text: see `resolve_budget`; of several the tightest counts, none is no limit on bytes.
        fixed: bytes that ship whatever the plan.
        groups: tensors that share one format; every tensor alone by default.
        logits_bits: least width of the head; 0 turns the logits rule off.
        pins: format by pattern on tensor names.
        min_bits: least width by pattern.
        metric: what is summed and minimised.
        rules: all of the last five in one, instead of these.
        ceilings: limits on other losses, on RAM, on time.
        minimise: this cost before the loss, e.g. bytes; the loss is then the least among the plans that cost the least.
        time_limit_s: of each of two solves; a plan that is not proved optimal by then says so in its solver report.

    Raises:
        InputError: the budget or a pattern is not understood, or a tensor has no measured format that is allowed.
        InfeasibleError: no plan satisfies the limits; names the smallest.
        QplanError: no plan was found in time.
    """
    rules = rules or Rules(groups, logits_bits, pins or {}, min_bits or {}, metric)
    card, losses = table.model, rules.losses(table)
    uniform_fixed, scale_bits = rules.uniform_fixed or fixed, rules.uniform_scale_bits
    budget = tightest(budget_text, card, uniform_fixed, scale_bits)
    problem = rules.problem(card, losses, None if budget is None else budget.limit_bytes - fixed.total)
    for ceiling in ceilings:
        problem = ceiling.applied(problem, card)
    uniform = {name: uniform_formats(card, bits, scale_bits) for name, bits in UNIFORM_BITS.items()}
    if budget is not None and budget.bits is not None:
        uniform.setdefault(f"int{budget.bits}", uniform_formats(card, budget.bits, scale_bits))
    known = [
        picks for formats in uniform.values() if (picks := picks_of(problem, formats, card, forced=True)) is not None
    ]
    cheapest = None
    if minimise is not None:
        cheapest = solve(problem.cheapest_program(minimise.choice(card)), known=known, time_limit_s=time_limit_s)
        if cheapest.picks:
            problem = problem.limited(
                f"least {minimise.name}", minimise.unit, round(cheapest.objective), minimise.choice(card)
            )
            known = [cheapest.picks]
    solution = solve(problem.program(), known=known, time_limit_s=time_limit_s)
    if solution.status is Status.INFEASIBLE:
        raise infeasible(problem, budget, fixed.total, restricted=bool(rules.pins or rules.min_bits))
    if not solution.picks:
        asked = "the limits" if budget is None else budget.text
        msg = f"no plan within {asked} was found in {time_limit_s:g} s; raise the budget or the time limit"
        raise QplanError(msg)
    formats = member_formats(problem, solution.picks, card)
    files = file_bytes(card, formats, fixed)
    # uniform exports are rounded to nearest: losses of better integers are not theirs
    nearest = table.kl(table.goal) if table.conditions.rounding == "rtn" else {}
    tensors = planned_tensors(table, formats)
    return Plan(
        model=card.source,
        model_sha256=card.sha256,
        sensitivity_sha256=table.sha256,
        memory=table.conditions.memory,
        budget="none" if budget is None else budget.text,
        budget_bytes=files.total if budget is None else budget.limit_bytes,
        tensors=tensors,
        predicted_nats=predicted_nats(tensors, table),
        files=files,
        solver=_report(solution, cheapest),
        logits=_logits_rule(problem, solution, time_limit_s),
        uniform=tuple(
            UniformPoint(name, file_bytes(card, f, uniform_fixed).total, _predicted_uniform(f, nearest, table))
            for name, f in uniform.items()
        ),
        notes=(*_router_notes(card, formats), *_notes(card, budget, fixed, solution, uniform)),
        given=rules.given,
        limits=planned_limits(ceilings, card, formats),
        objective="loss" if minimise is None else minimise.name,
        target=rules.target.name,
    )


def tightest(texts: str | Sequence[str], card: ModelCard, fixed: FixedBytes, scale_bits: int = 16) -> Budget | None:
    """The smallest of several budgets; None without any.

    Raises:
        InputError: one is not understood.
    """
    budgets = [resolve_budget(text, card, fixed, scale_bits) for text in ([texts] if isinstance(texts, str) else texts)]
    return min(budgets, key=lambda budget: budget.limit_bytes, default=None)


def planned_limits(
    limits: Sequence[Ceiling | ResourceLimit], card: ModelCard, formats: Mapping[str, QuantFormat]
) -> tuple[PlannedLimit, ...]:
    """Limits, with what a plan uses of each."""
    return tuple(
        PlannedLimit(limit.name, limit.limit, limit.cost.total(card, formats), limit.cost.unit)
        if isinstance(limit, ResourceLimit)
        else PlannedLimit(limit.name, limit.limit_nats, limit.total_nats(formats), "nats")
        for limit in limits
    )


def picks_of(
    problem: Problem, formats: Mapping[str, QuantFormat], card: ModelCard, *, forced: bool = False
) -> tuple[int, ...] | None:
    """Picks of a problem that give every tensor its format; None if the problem does not hold them all.

    Args:
        problem: with choices for every tensor.
        formats: by tensor name.
        card: the model.
        forced: whether a group with a single choice takes that, whatever its format.
    """
    picks = []
    for group in problem.groups:
        specs = [card.tensor(name) for name in group.members]
        fitting = [
            index
            for index, choice in enumerate(group.choices)
            if all(choice.format.resolve(spec.in_features) == formats[spec.name] for spec in specs)
        ]
        if not fitting and not (forced and len(group.choices) == 1):
            return None
        picks.append(fitting[0] if fitting else 0)
    return tuple(picks)


def member_formats(problem: Problem, picks: Sequence[int], card: ModelCard) -> dict[str, QuantFormat]:
    """Format by tensor name, resolved for each tensor's width."""
    by_group = problem.picked_formats(picks)
    return {
        name: by_group[group.name].resolve(card.tensor(name).in_features)
        for group in problem.groups
        for name in group.members
    }


def planned_tensors(table: SensitivityTable, formats: Mapping[str, QuantFormat]) -> tuple[PlannedTensor, ...]:
    """The plan's rows, in order of execution."""
    losses = table.kl(table.goal)
    return tuple(
        PlannedTensor(
            spec.name,
            spec.op_name,
            spec.layer,
            spec.kind,
            spec.weights,
            formats[spec.name],
            record_bytes(spec, formats[spec.name]),
            losses[spec.name][formats[spec.name].name],
        )
        for spec in table.model.tensors
    )


def predicted_nats(tensors: Sequence[PlannedTensor], table: SensitivityTable) -> float:
    """The loss of a whole plan: the sum of single ones, corrected by how sums and whole plans compared.

    See `qplan.sensitivity.additivity`.
    """
    return table.predict_joint(math.fsum(tensor.loss_nats for tensor in tensors))


def _predicted_uniform(
    formats: Mapping[str, QuantFormat], losses: Mapping[str, Mapping[str, float]], table: SensitivityTable
) -> float | None:
    total = uniform_loss(formats, losses)
    return None if total is None else table.predict_joint(total)


def _report(solution: Solution, cheapest: Solution | None) -> SolverReport:
    """What was proved; of two solves the weaker proof."""
    first = solution if cheapest is None or cheapest.status is Status.OPTIMAL else cheapest
    return SolverReport(
        first.status.value,
        solution.objective,
        solution.bound,
        max(solution.gap, first.gap),
        solution.choices,
        solution.seconds + (0.0 if cheapest is None else cheapest.seconds),
    )


def _logits_rule(problem: Problem, solution: Solution, time_limit_s: float) -> LogitsRule:
    """Solve again without the rule; the head keeps its legal formats."""
    free = solve(replace(problem, logits_bits=0).program(), known=[solution.picks], time_limit_s=time_limit_s)
    heads = [i for i, group in enumerate(problem.groups) if group.is_head]
    without = ", ".join(problem.groups[i].choices[free.picks[i]].format.name for i in heads)
    price = max(0.0, solution.objective - free.objective)
    if math.isclose(solution.objective, free.objective, rel_tol=1e-12):
        price = 0.0
    return LogitsRule(problem.logits_bits, problem.logits_bits > 0 and bool(heads), price, without)


def _router_notes(card: ModelCard, formats: Mapping[str, QuantFormat]) -> Iterator[str]:
    """How routers are stored: a rule if nobody pinned them."""
    routers = [spec for spec in card.tensors if spec.role is Role.ROUTER]
    if not routers:
        return
    first = routers[0].name.split(".", 3)[-1]
    if all(formats[spec.name] == ROUTER_FORMAT for spec in routers):
        yield f"rule: routers are {ROUTER_FORMAT} ({len(routers)} of them); --pin '*.{first}=int8' overrides it"
    else:
        low = sum(formats[spec.name] != ROUTER_FORMAT for spec in routers)
        yield f"{low} of {len(routers)} routers are rounded: tokens may be sent to other experts"


def _notes(
    card: ModelCard,
    budget: Budget | None,
    fixed: FixedBytes,
    solution: Solution,
    uniform: Mapping[str, Mapping[str, QuantFormat]],
) -> tuple[str, ...]:
    notes = []
    if solution.status is Status.TIME_LIMIT:
        notes.append(f"the solver stopped at its time limit; a better plan may exist, by at most {solution.gap:.2%}")
    if not fixed.exact:
        notes.append("the graph file's size is an estimate; build the model for the exact bytes")
    odd = sorted(
        {
            spec.in_features
            for formats in uniform.values()
            for spec in card.tensors
            if not formats[spec.name].is_float and formats[spec.name].block != 64
        }
    )
    if odd:
        rows = ", ".join(str(width) for width in odd)
        notes.append(f"64 does not divide rows of {rows}: MNN's uniform export, the baseline, takes other blocks there")
    if budget is not None and budget.limit_bytes > max(
        file_bytes(card, formats, fixed).total for formats in uniform.values()
    ):
        notes.append("the budget is larger than uniform fp16")
    return tuple(notes)
