"""From a sensitivity table to a plan, and to what a better one would cost. Takes seconds and loads no model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from qplan.artifact import is_there
from qplan.choosing.cache import choose_cache
from qplan.choosing.option import Setting, predicted_loss, settings_to_weigh
from qplan.choosing.request import PlanRequest
from qplan.choosing.retarget import retarget_rules, retarget_table
from qplan.choosing.sizes import run_fixed_bytes, unfolded_fixed_bytes
from qplan.choosing.solving import solved, with_notes_of
from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InfeasibleError, InputError, UnsolvedError
from qplan.formats import applies
from qplan.jobs.checks import check_option, check_profiled
from qplan.jobs.options import EmitOptions, PlanOptions
from qplan.notes import Note
from qplan.planner.budget import Budget
from qplan.planner.planning import is_unlimited
from qplan.planner.solver.solver import TIME_LIMIT_S
from qplan.planner.uniform import uniform_loss
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.profile import DeviceProfile
from qplan.run.table import SensitivityTable
from qplan.settings import Say
from qplan.uniform import UNIFORM_NAMES, uniform_formats

LARGER, LARGER_BESIDE_NAMED = (1.1, 1.25, 1.5, 2.0), (1.1,)
"""Sizes of the plans that are shown beside one, over its own; and where a budget names a uniform export, besides those
of the next that do, which keep what such a name promises."""

_NAMED = (5, 6, 8)
"""Widths of these."""

_WORTH = 0.95
"""Most that a larger plan may lose of what the plan loses, to be worth a line."""

_TIME_LIMIT_S, _LARGER_TIME_LIMIT_S = 0.5, 0.2
"""For a solve, and for one of a larger plan. What is not proved optimal by then says by how much a better plan may be;
`qplan emit` takes its time."""


@dataclass(frozen=True)
class PredictedTimes:
    """What a plan takes on this machine, by its profile."""

    machine: str
    threads: int
    prompt_tokens: int
    prefill_ms: float
    """Of the prompt."""
    decode_ms: float
    """Per token."""


@dataclass(frozen=True)
class PlanAnswer:
    """A plan, and what it is to be seen beside."""

    plan: Plan
    uniform_nats: dict[str, float]
    """Predicted losses of uniform formats, rounded like the plan; those that were not measured are left out."""
    larger: tuple[Plan, ...]
    """Plans of larger budgets that lose less, under the same rules and ``dynamic_option``, sizes ascending."""
    times: PredictedTimes | None
    """None without a profile of this model and target."""
    seconds: float


def run_plan(options: PlanOptions, run: RunFolder, say: Say) -> PlanAnswer:
    """Solve for a plan and for larger ones.

    Args:
        options: budgets, limits, rules and engine.
        run: a finished analysis.
        say: called with a line about each KV cache that is weighed.

    Raises:
        InputError: there is no analysis, a pattern matches nothing, or a device profile is needed and missing.
        InfeasibleError: no plan fits; the message gives the nearest value that does.
    """
    start = time.perf_counter()
    table = retarget_table(SensitivityTable.read(run.sensitivity), options.target)
    check_option(options.dynamic_option, table, run)
    check_profiled(options.wanted, run)
    ground = Ground.of(options, run, table)
    plan, found = solve_plan(options, ground, say, time_limit_s=_TIME_LIMIT_S)
    return PlanAnswer(
        plan=plan,
        uniform_nats=_uniform_nats(found, ground),
        larger=_larger(plan, found, ground),
        times=_times(plan, found, run),
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True)
class Ground:
    """What plans of a run are solved from."""

    run: RunFolder
    table: SensitivityTable
    """With formats as the engine reads them."""
    fixed: FixedBytes
    """Bytes that every plan ships."""
    unfolded: FixedBytes | None
    """The same of the model before folding; None if it was not exported."""

    @classmethod
    def of(cls, options: PlanOptions | EmitOptions, run: RunFolder, table: SensitivityTable) -> Self:
        """Read the sizes that a run knows."""
        card = table.model
        return cls(run, table, run_fixed_bytes(run, card, c4=options.target.c4), unfolded_fixed_bytes(run, card))


def solve_plan(
    options: PlanOptions, ground: Ground, say: Say, *, time_limit_s: float = TIME_LIMIT_S
) -> tuple[Plan, Setting]:
    """The plan of single losses alone, and what it was solved from.

    Args:
        options: budgets, limits, rules and engine.
        ground: losses and sizes.
        say: called with a line about each KV cache that is weighed.
        time_limit_s: for a solve.

    Raises:
        InputError: a pattern matches nothing, or what a KV cache loses would have to be measured.
        InfeasibleError: no plan fits; the message gives the nearest value that does.
    """
    table = ground.table
    wanted = replace(options.wanted, rules=retarget_rules(options.wanted.rules, options.target))
    solutions: list[tuple[Plan, Setting]] = []
    refused: InfeasibleError | None = None
    for one in settings_to_weigh(table, wanted, options.dynamic_option):
        try:
            found, notes = _with_cache(one, options, ground, say)
            plan = _solved(found, ground, time_limit_s)
        except InfeasibleError as error:
            refused = refused or error
            continue
        solutions.append((plan.noted(*notes), found))
    if not solutions:
        raise refused or InfeasibleError("no plan fits")
    plan, found = min(solutions, key=lambda pair: pair[0].predicted_nats)
    asked = options.dynamic_option
    if asked is not None and applies(plan.memory, plan.formats):  # also where the table has no losses under it
        plan = replace(plan, dynamic_option=asked)
    plan = replace(
        plan,
        engine=None if options.engine is None else str(options.target.engine),
        kv=found.wanted.cache,
    )
    return with_notes_of(plan, table, found.wanted.rules), found


def _solved(found: Setting, ground: Ground, time_limit_s: float) -> Plan:
    """The plan for a setting; on a busy machine, a short limit may be over before there is one."""

    def within(limit_s: float) -> Plan:
        return solved(
            ground.run,
            found.table,
            ground.fixed,
            found.wanted,
            unfolded=ground.unfolded,
            time_limit_s=limit_s,
            sensitivity_sha256=ground.table.sha256,
        )

    try:
        return within(time_limit_s)
    except UnsolvedError:
        if time_limit_s >= TIME_LIMIT_S:
            raise
        return within(TIME_LIMIT_S)


def _with_cache(found: Setting, options: PlanOptions, ground: Ground, say: Say) -> tuple[Setting, tuple[Note, ...]]:
    """The setting with the KV cache that it gets, if a context was given."""
    if found.wanted.context is None:
        return found, ()
    from qplan.jobs.cache import cache_menu, cache_notes  # noqa: PLC0415 - transformers takes seconds

    menu = cache_menu(found.wanted, ground.table, options.target.engine)
    if menu is None:
        return found, ()
    predicted = partial(predicted_loss, found.table, ground.run, ground.fixed)
    cache = choose_cache(menu, found.wanted, predicted, None, say)
    return replace(found, wanted=replace(found.wanted, cache=cache)), cache_notes(cache)


def _larger(plan: Plan, found: Setting, ground: Ground) -> tuple[Plan, ...]:
    """Plans of more bytes that lose less. Limits on RAM and times stay, but those that a budget's name brings."""
    if is_unlimited(plan):
        return ()
    known, kept = {tuple(plan.formats.items())}, list[Plan]()
    for budget in _larger_budgets(plan, found.wanted):
        wanted = replace(
            found.wanted,
            budgets=(budget,),
            objective=PlanRequest.objective,
            max_kl=None,
            max_ppl_increase=None,
        )
        try:
            one = solved(
                ground.run,
                found.table,
                ground.fixed,
                wanted,
                unfolded=ground.unfolded,
                time_limit_s=_LARGER_TIME_LIMIT_S,
                prices_logits_rule=False,
                sensitivity_sha256=ground.table.sha256,
            )
        except (InfeasibleError, UnsolvedError):
            continue
        formats = tuple(one.formats.items())
        if one.predicted_nats <= _WORTH * plan.predicted_nats and formats not in known:
            kept.append(one)
        known.add(formats)
    return tuple(sorted(kept, key=lambda one: one.files.total))


def _larger_budgets(plan: Plan, wanted: PlanRequest) -> Iterator[Budget]:
    named = [budget.bits for budget in wanted.budgets if budget.bits is not None]
    for factor in LARGER_BESIDE_NAMED if named else LARGER:
        yield Budget.parse(_round_megabytes(factor * plan.files.total))
    if named:
        yield from (Budget.parse(UNIFORM_NAMES[bits]) for bits in _NAMED if bits > min(named))


def _round_megabytes(count: float) -> str:
    """A budget of three significant digits."""
    megabytes = float(f"{count / 1e6:.3g}")
    return f"{megabytes:g}MB" if megabytes < 1000 else f"{megabytes / 1000:g}GB"


def _uniform_nats(found: Setting, ground: Ground) -> dict[str, float]:
    """Predicted losses of the uniform formats that a plan names, under the ``dynamic_option`` that MNN exports with.

    That is what their times are of, whatever the plan is made for.
    """
    rules = found.wanted.rules
    table = replace(rules, target=rules.target.scaling(0)).seen(ground.table)
    losses = table.ordered_kl(table.goal)
    nats: dict[str, float] = {}
    for bits, name in UNIFORM_NAMES.items():
        total = uniform_loss(uniform_formats(table.model, bits, rules.uniform_scale_bits), losses)
        if total is not None:
            nats[name] = table.predict_joint(total)
    return nats


def _times(plan: Plan, found: Setting, run: RunFolder) -> PredictedTimes | None:
    """By the run's profile, if it is of this model, target and setting."""
    if not is_there(run.device):
        return None
    profile = DeviceProfile.read(run.device)
    if profile.target != plan.target or plan.dynamic_option:
        return None
    try:
        profile.check_model(found.table.model, plan.memory)
        prefill, decode = profile.predict(found.table.model, plan.formats)
    except InputError:  # of another model, or of other formats
        return None
    return PredictedTimes(profile.machine, profile.threads, profile.prompt_tokens, prefill, decode)
