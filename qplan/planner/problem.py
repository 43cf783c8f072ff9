"""The planning problem in plain numbers: groups, their choices, and the limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qplan.errors import InputError, MeasurementError
from qplan.formats import FP16, TIED_BITS, QuantFormat
from qplan.planner.patterns import least_bits, pinned_formats
from qplan.planner.solver.program import Program, Row
from qplan.tensors import TensorGroup

FILE_BYTES, LOGITS_MEAN, LOGITS_BITS = "file bytes", "logits rule: mean", "logits rule: bits"
"""Names of the program's rows."""

HEAD_LEAST_BITS = 8
"""Least width of the head and a tied embedding by default."""

ROUTER_FORMAT = FP16
"""Format of routers that are not pinned: they are small, and rounding them sends tokens to other experts."""


@dataclass(frozen=True)
class Choice:
    """One format that a group may take."""

    format: QuantFormat
    """The format; each member resolves it for itself (`TensorSpec.resolve`)."""
    bytes: int
    """Bytes of the members' records in the weight file, or of an embedding's own file."""
    loss: float
    """Sum of the members' single losses; nats unless another metric was requested."""


@dataclass(frozen=True)
class GroupChoices:
    """A group and the formats it may take."""

    name: str
    members: tuple[str, ...]
    """Hugging Face names."""
    weights: int
    is_head: bool
    choices: tuple[Choice, ...]
    is_embedding: bool = False
    """Whether this is an untied embedding: no part of the mean width that the head has to reach."""


@dataclass(frozen=True)
class Resource:
    """A limit besides file bytes: RAM, time."""

    name: str
    unit: str
    """The unit that people read, e.g. ``MB``, ``ms``."""
    limit: int
    costs: tuple[tuple[int, ...], ...]
    """Cost of every choice of every group, in whole counts."""
    units: float = 1
    """Counts in one ``unit``."""
    offset: int = 0
    """Counts that every plan uses; `limit` is what remains besides these."""
    of: str = ""
    """The uniform export whose use the limit is; empty for a limit that a user gave."""

    def express(self, counts: int) -> str:
        """What a plan uses in total, as text; rounded up, so that a limit of the result covers the counts."""
        amount = (counts + self.offset) / self.units
        step = 10.0 ** (math.floor(math.log10(abs(amount))) - 3) if amount else 1.0
        return f"{math.ceil(amount / step) * step:.4g} {self.unit}"


@dataclass(frozen=True)
class Problem:
    """Choose a format for every group: the least loss within the limits."""

    groups: tuple[GroupChoices, ...]
    limit_bytes: int | None
    """Limit on the linear records together, without the fixed bytes; None for no limit."""
    logits_bits: int
    """The head has at least this width, and at least the size-weighted mean width of the others; 0 for no rule."""
    resources: tuple[Resource, ...] = ()

    def within(self, limit_bytes: int) -> Problem:
        """The same problem with another limit on the linear records together."""
        return replace(self, limit_bytes=limit_bytes)

    def limited(
        self,
        name: str,
        unit: str,
        limit: int,
        cost: Callable[[GroupChoices, Choice], int],
        *,
        units: float = 1,
        offset: int = 0,
        of: str = "",
    ) -> Problem:
        """The same problem with one more limited resource.

        Args:
            name: name of the resource; must be new.
            unit: the unit that people read.
            limit: the most that the choices may use together, in whole counts.
            cost: cost of a group's choice, in whole counts.
            units: counts in one ``unit``.
            offset: counts that every plan uses in addition to the limit.
            of: the uniform export whose use the limit is, if it is one's.
        """
        costs = tuple(tuple(cost(group, choice) for choice in group.choices) for group in self.groups)
        return replace(self, resources=(*self.resources, Resource(name, unit, limit, costs, units, offset, of)))

    def program(self) -> Program:
        """The program for the least loss within all limits."""
        rows = self._rows()
        if self.limit_bytes is not None:
            rows = (Row(FILE_BYTES, self._per_choice(lambda _, c: c.bytes), self.limit_bytes), *rows)
        return Program(tuple(tuple(c.loss for c in group.choices) for group in self.groups), rows)

    def smallest_program(self) -> Program:
        """The program for the fewest file bytes within all limits except the one on bytes."""
        return Program(tuple(tuple(float(c.bytes) for c in group.choices) for group in self.groups), self._rows())

    def cheapest_program(self, cost: Callable[[GroupChoices, Choice], int]) -> Program:
        """The program for the least cost within all limits."""
        return replace(self.program(), values=tuple(tuple(float(c) for c in row) for row in self._per_choice(cost)))

    def picked_bytes(self, picks: Sequence[int]) -> int:
        """File bytes of the picked choices."""
        return sum(group.choices[pick].bytes for group, pick in zip(self.groups, picks, strict=True))

    def picked_formats(self, picks: Sequence[int]) -> dict[str, QuantFormat]:
        """Picked format by group name."""
        return {g.name: g.choices[pick].format for g, pick in zip(self.groups, picks, strict=True)}

    def _per_choice(self, cost: Callable[[GroupChoices, Choice], int]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(cost(group, choice) for choice in group.choices) for group in self.groups)

    def _rows(self) -> tuple[Row, ...]:
        rows = [Row(resource.name, resource.costs, resource.limit) for resource in self.resources]
        heads = [group for group in self.groups if group.is_head]
        if self.logits_bits and heads:
            short = self._per_choice(lambda g, c: max(0, self.logits_bits - c.format.bits) if g.is_head else 0)
            rows.append(Row(LOGITS_BITS, short, 0))
            others = sum(group.weights for group in self.groups if not group.is_head and not group.is_embedding)
            rows.extend(Row(_mean_row(head, heads), self._mean_costs(head, others), 0) for head in heads)
        return tuple(rows)

    def _mean_costs(self, head: GroupChoices, others: int) -> tuple[tuple[int, ...], ...]:
        """Sum of weights x bits over all other groups, minus the same weights at the head's width; at most 0."""

        def cost(group: GroupChoices, choice: Choice) -> int:
            if group.is_head:
                return -others * choice.format.bits if group is head else 0
            return 0 if group.is_embedding else group.weights * choice.format.bits

        return self._per_choice(cost)


def build_problem(
    groups: Sequence[TensorGroup],
    losses: Mapping[str, Mapping[str, float]],
    limit_bytes: int | None,
    *,
    logits_bits: int = HEAD_LEAST_BITS,
    pins: Mapping[str, QuantFormat] | None = None,
    min_bits: Mapping[str, int] | None = None,
) -> Problem:
    """State the problem from measured losses.

    Args:
        groups: tensors that share one format.
        losses: by tensor name and format name.
        limit_bytes: limit on all linear records; None for no limit.
        logits_bits: least width of the head, 0 for no rule at all.
        pins: format by pattern on tensor or group names; routers without a pin keep `ROUTER_FORMAT`.
        min_bits: least width by pattern on tensor or group names.

    Raises:
        InputError: a pattern matches nothing, or a group has no measured format that the engine, pins and widths allow.
        MeasurementError: a loss is negative or not finite.
    """
    pinned, least = pinned_formats(groups, pins or {}), least_bits(groups, min_bits or {})
    stated = []
    for group in groups:
        measured = _measured_choices(group, losses)
        floor = max(least.get(group.name, 0), logits_bits if group.is_head else 0)
        choices = measured
        if group.name in pinned:
            choices = tuple(c for c in measured if _same(group, c.format, pinned[group.name]))
        elif group.routes:
            choices = tuple(c for c in measured if c.format == ROUTER_FORMAT) or measured
        choices = tuple(c for c in choices if c.format.bits >= least.get(group.name, 0))
        _check_known(group, choices)
        if not any(choice.format.bits >= floor for choice in choices):
            raise _no_choice(group, measured, pinned.get(group.name), floor, logits_bits)
        members = tuple(member.name for member in group.members)
        stated.append(GroupChoices(group.name, members, group.weights, group.is_head, choices, group.is_embedding))
    return Problem(tuple(stated), limit_bytes, logits_bits)


def _check_known(group: TensorGroup, choices: Sequence[Choice]) -> None:
    """Refuse experts that no calibration token reached: their loss is not zero but unknown.

    Raises:
        InputError: experts without a known loss.
    """
    experts = all(member.expert is not None for member in group.members)
    integers = [choice for choice in choices if not choice.format.is_float]
    if experts and integers and not any(choice.loss for choice in integers):
        msg = (
            f"no calibration token reached {group.name}: the loss of its formats is unknown; analyze with a longer "
            "text or more --samples, pin it, or drop the --group that takes it from its layer's experts"
        )
        raise InputError(msg)


def _measured_choices(group: TensorGroup, losses: Mapping[str, Mapping[str, float]]) -> tuple[Choice, ...]:
    """Formats that every member was measured in and that the engine computes right."""
    names = dict.fromkeys(name for member in group.members for name in losses.get(member.name, {}))
    choices: dict[tuple[QuantFormat, ...], Choice] = {}
    for fmt in map(QuantFormat.parse, names):
        resolved = tuple(member.resolve(fmt) for member in group.members)
        each = [losses.get(m.name, {}).get(f.name) for m, f in zip(group.members, resolved, strict=True)]
        found = [loss for loss in each if loss is not None]
        legal = all(m.allows(f) for m, f in zip(group.members, resolved, strict=True))
        if len(found) < len(each) or not legal:
            continue
        if not all(math.isfinite(loss) and loss >= 0 for loss in found):
            msg = f"{group.name} in {fmt}: losses {found} are impossible; run 'qplan analyze' again"
            raise MeasurementError(msg)
        size = sum(m.bytes_in(f) for m, f in zip(group.members, resolved, strict=True))
        choices.setdefault(resolved, Choice(fmt, size, math.fsum(found)))
    return tuple(choices.values())


def _same(group: TensorGroup, one: QuantFormat, other: QuantFormat) -> bool:
    return all(member.resolve(one) == member.resolve(other) for member in group.members)


def _no_choice(
    group: TensorGroup, measured: Sequence[Choice], pin: QuantFormat | None, floor: int, logits_bits: int
) -> InputError:
    have = ", ".join(choice.format.name for choice in measured) or "none"
    if pin is not None and not any(_same(group, c.format, pin) for c in measured):
        wanted, remedy = f"is pinned to {pin}", f"add {pin} to --formats if the engine allows it, or change the pin"
        if not pin.can_be_looked_up and any(member.tied or member.is_embedding for member in group.members):
            *narrow, widest = TIED_BITS
            remedy = f"tokens are looked up in {', '.join(map(str, narrow))} or {widest} bits: pin it to one of these"
    elif pin is not None:
        wanted, remedy = f"is pinned to {pin} and must have at least {floor} bits", "change one of the two"
    elif measured:
        lower = "lower --logits-bits" if group.is_head and floor == logits_bits else "lower --min-bits"
        wanted, remedy = f"needs at least {floor} bits", f"add int8 or fp16 to --formats, or {lower}"
    else:
        wanted, remedy = "needs a legal format", "add int8, int4 or fp16 to --formats"
    return InputError(f"{group.name} {wanted}; measured and legal: {have}; {remedy}")


def _mean_row(head: GroupChoices, heads: Sequence[GroupChoices]) -> str:
    return LOGITS_MEAN if len(heads) == 1 else f"{LOGITS_MEAN} ({head.name})"
