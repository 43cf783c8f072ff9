"""What a budget that names a uniform export promises besides bytes: RAM, decode and prefill time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from qplan.artifact import is_there
from qplan.choosing.costs import decode_cost, prefill_cost, ram_cost
from qplan.cost.footprint import prefill_work
from qplan.cost.target import Target
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.notes import Note, note
from qplan.planner.budget import Budget
from qplan.planner.limits import Cost, ResourceLimit
from qplan.planner.problem import ROUTER_FORMAT
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.run.profile import DeviceProfile
from qplan.tensors import Role, TensorSpec
from qplan.uniform import UNIFORM_BITS, UNIFORM_NAMES, uniform_formats

if TYPE_CHECKING:  # the command line takes its defaults from here, and waits for no pyarrow
    from qplan.run.table import SensitivityTable

RELATIVE_DECODE, RELATIVE_PREFILL = "relative decode time", "relative prefill time"
"""Limits where no device profile gives milliseconds."""

OF_EXPERTS = " of experts"
"""End of the name of a limit on a mixture's experts. A token meets some of them only, how many is not known here, and
what all others gain must not pay for them."""

_COUNTS = 16
"""Whole counts per byte read, or per weight: relative times are limited in integers, as everything is."""

Work = Callable[[TensorSpec, QuantFormat], float]
Counts = Callable[[TensorSpec, QuantFormat], int]


def parity_limits(
    budgets: Sequence[Budget], rules: Rules, table: SensitivityTable, run: RunFolder
) -> tuple[ResourceLimit, ...]:
    """The limits that come with budgets such as ``int4``: what that uniform export takes on the rules' target.

    None under parity ``files``, and none of an export that the target does not compute.

    Args:
        budgets: those that name no uniform export limit bytes alone.
        rules: the parity, and the target.
        table: of the model, under the memory setting that the plan is for.
        run: may hold a device profile of this target; otherwise times are relative, by the target's data.
    """
    if rules.parity == "files":
        return ()
    every: dict[str, ResourceLimit] = {}
    for bits in dict.fromkeys(budget.bits for budget in budgets if budget.bits is not None):
        uniform = runnable_uniform(table, rules, bits)
        for limit in () if uniform is None else _limits_of(Yardstick(bits, uniform), rules, table, run):
            known = every.get(limit.name)
            every[limit.name] = limit if known is None or limit.counts < known.counts else known
    return tuple(every.values())


def promised(rules: Rules, table: SensitivityTable, run: RunFolder) -> dict[str, tuple[ResourceLimit, ...]]:
    """The limits of every budget that names a uniform export, by its name; those without any are left out."""
    found = {name: parity_limits((Budget.parse(name),), rules, table, run) for name in UNIFORM_NAMES.values()}
    return {name: limits for name, limits in found.items() if limits}


def parity_notes(budgets: Sequence[Budget], rules: Rules, table: SensitivityTable) -> tuple[Note, ...]:
    """What a reader must know where a budget limits files alone, though it names a uniform export."""
    named = [budget.bits for budget in budgets if budget.bits is not None and rules.parity == "all"]
    return tuple(
        note("uniform-not-on-target", target=rules.target.name, uniform=UNIFORM_NAMES[bits])
        for bits in dict.fromkeys(named)
        if runnable_uniform(table, rules, bits) is None
    )


@dataclass(frozen=True)
class Yardstick:
    """A uniform export that plans are held against."""

    bits: int
    formats: Mapping[str, QuantFormat]
    """By tensor name."""

    @property
    def name(self) -> str:
        """Such as ``int4``."""
        return UNIFORM_NAMES[self.bits]


def runnable_uniform(table: SensitivityTable, rules: Rules, bits: int) -> dict[str, QuantFormat] | None:
    """The uniform export as the target can run it; None if it has not that width, or none for the head.

    Where a block that the exporter came to by halving is wrong there, the whole row stands for it, which takes less.
    Routers count in fp16, which no plan takes from them unless it is pinned: of a mixture, they are next to nothing.
    """
    found: dict[str, QuantFormat] = {}
    for name, fmt in uniform_formats(table.model, bits, rules.uniform_scale_bits).items():
        spec = table.model.tensor(name)
        if spec.role is Role.ROUTER:
            found[name] = ROUTER_FORMAT
            continue
        runs = [f for f in (fmt, fmt if fmt.is_float else replace(fmt, block=0)) if rules.target.legal(spec, f)]
        if not runs:
            return None
        found[name] = runs[0]
    return found


def relimited(limit_of: str, name: str, rules: Rules, table: SensitivityTable) -> ResourceLimit | None:
    """A relative limit again, from what a plan records of it; None if it is none."""
    bits = UNIFORM_BITS.get(limit_of)
    uniform = None if bits is None else runnable_uniform(table, rules, bits)
    if bits is None or uniform is None:
        return None
    return next((one for one in _relative(Yardstick(bits, uniform), rules, table) if one.name == name), None)


def _limits_of(uniform: Yardstick, rules: Rules, table: SensitivityTable, run: RunFolder) -> tuple[ResourceLimit, ...]:
    plain = replace(rules, target=rules.target.scaling(0))
    ram = _at(ram_cost(rules, table), uniform, table, ram_cost(plain, table))
    if not _is_profiled(uniform, rules, table, run):
        return ram, *_relative(uniform, rules, table)
    return ram, *(_at(cost, uniform, table) for cost in (decode_cost(table, run), prefill_cost(table, run)))


def _is_profiled(uniform: Yardstick, rules: Rules, table: SensitivityTable, run: RunFolder) -> bool:
    """Whether the run has times of this model on this target, and of this uniform export."""
    if not is_there(run.device) or rules.target.dynamic_option:
        return False
    profile = DeviceProfile.read(run.device)
    if profile.target != rules.target.name:
        return False
    try:
        profile.check_model(table.model, table.goal)
        profile.predict(table.model, uniform.formats)
    except InputError:  # times of another model, or of other formats
        return False
    return True


def _at(cost: Cost, uniform: Yardstick, table: SensitivityTable, its: Cost | None = None) -> ResourceLimit:
    """No more of a cost than the uniform export, whose own is ``its`` if it runs under other settings."""
    its = its or cost
    counts = its.offset + sum(its.of(spec, uniform.formats[spec.name]) for spec in table.model.tensors)
    # half a count, so that the limit stays this count when it is read as a whole number again
    return ResourceLimit(cost, (counts + 0.5) / cost.units, uniform.name)


def _relative(uniform: Yardstick, rules: Rules, table: SensitivityTable) -> tuple[ResourceLimit, ...]:
    """Limits on times in percent of the uniform export's, by the target's data."""
    memory = table.goal

    def decode(target: Target, spec: TensorSpec, fmt: QuantFormat) -> float:
        return target.decode_bytes(spec, fmt, memory)

    def prefill(target: Target, spec: TensorSpec, fmt: QuantFormat) -> float:
        return prefill_work(target, spec, fmt, memory)

    plain = rules.target.scaling(0)
    routed = any(spec.role is Role.EXPERT for spec in table.model.tensors)
    found = []
    for name, work in ((RELATIVE_DECODE, decode), (RELATIVE_PREFILL, prefill)):
        for experts in (False, True) if routed else (None,):
            whole = name + (OF_EXPERTS if experts else "")
            ours, its = (_part(partial(work, target), experts=experts) for target in (rules.target, plain))
            found.append(_percent(whole, ours, its, uniform, table))
    return tuple(found)


def _part(work: Work, *, experts: bool | None) -> Callable[[TensorSpec, QuantFormat], int]:
    """Counts of the experts, of all other tensors, or (None) of all."""

    def counts(spec: TensorSpec, fmt: QuantFormat) -> int:
        mine = experts is None or (spec.role is Role.EXPERT) == experts
        return round(_COUNTS * work(spec, fmt)) if mine else 0

    return counts


def _percent(name: str, ours: Counts, its: Counts, uniform: Yardstick, table: SensitivityTable) -> ResourceLimit:
    total = sum(its(spec, uniform.formats[spec.name]) for spec in table.model.tensors)
    return _at(Cost(name, "%", total / 100, ours), uniform, table, Cost(name, "%", total / 100, its))
