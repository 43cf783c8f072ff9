"""What a user asks of a plan besides budgets and limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes
from qplan.cost.target import DEFAULT_TARGET, Target, find_target
from qplan.errors import InputError
from qplan.formats import WIDTHS, QuantFormat
from qplan.planner.groups import make_groups
from qplan.planner.metric import Metric, loss_of
from qplan.planner.patterns import least_bits, pinned_formats
from qplan.planner.problem import HEAD_LEAST_BITS, Problem, build_problem
from qplan.run.monotone import ordered_losses
from qplan.run.plan import GivenRules, LeastBits, Pin, Plan
from qplan.settings import PARITIES, PRECISIONS, Parity, Precision, one_of

if TYPE_CHECKING:  # the command line takes its defaults from here, and waits for no pyarrow
    from qplan.run.table import SensitivityTable
    from qplan.tensors import TensorGroup

_WIDTH = re.compile(r"\s*[0-9]{1,9}\s*")


@dataclass(frozen=True)
class Rules:
    """What the user asks of a plan besides budgets and limits."""

    logits_bits: int = HEAD_LEAST_BITS
    """Least width of the head and a tied embedding, which also get at least the others' mean width; 0 for no rule."""
    pins: Mapping[str, QuantFormat] = field(default_factory=dict)
    """Format by pattern on tensor names."""
    min_bits: Mapping[str, int] = field(default_factory=dict)
    """Least width by pattern on tensor names."""
    metric: Metric = Metric.kl
    """What is summed and minimized."""
    group_patterns: tuple[str, ...] = ()
    """Patterns whose tensors share a format, see `qplan.planner.groups.make_groups`."""
    fused: bool = False
    """Whether q, k, v and gate, up share a format."""
    target: Target = field(default_factory=partial(find_target, DEFAULT_TARGET))
    """The hardware that the plan runs on: formats that are not legal there are not chosen."""
    parity: Parity = "all"
    """What a budget that names a uniform export promises besides bytes."""
    uniform_scale_bits: int = 16
    """Width of the scales of the uniform export that the plan is compared with; some engines only read 32 bits."""
    uniform_fixed: FixedBytes | None = None
    """Fixed bytes of that export, if fewer than a plan's: a folded tied head adds an op to the graph."""

    def __post_init__(self) -> None:
        """Refuse widths that no format has.

        Raises:
            InputError: a width beyond the limits; the message names option, value and limits.
        """
        if not 0 <= self.logits_bits <= WIDTHS[-1]:
            msg = f"--logits-bits {self.logits_bits}: must be 0 (no rule) or a width of at most {WIDTHS[-1]}, e.g. 8"
            raise InputError(msg)
        for pattern, bits in self.min_bits.items():
            if not 1 <= bits <= WIDTHS[-1]:
                msg = f"--min-bits {pattern}={bits}: must be at least 1 and at most {WIDTHS[-1]}, e.g. 6"
                raise InputError(msg)

    def asked(self) -> tuple[str, ...]:
        """Options of the rules that are not the defaults, but for the hardware."""
        plain = Rules(target=self.target)
        options = {"--logits-bits": "logits_bits", "--pin": "pins", "--min-bits": "min_bits"}
        options |= {"--group": "group_patterns", "--group-fused": "fused", "--metric": "metric"}
        options |= {"--parity": "parity"}
        return tuple(option for option, name in options.items() if getattr(self, name) != getattr(plain, name))

    @classmethod
    def parse(
        cls,
        *,
        pins: Mapping[str, str | QuantFormat] | None = None,
        min_bits: Mapping[str, str | int] | None = None,
        logits_bits: int = HEAD_LEAST_BITS,
        groups: Iterable[str] = (),
        fused: bool = False,
        metric: str = Metric.kl,
        target: str = DEFAULT_TARGET,
        parity: str = "all",
        precision: str = "low",
    ) -> Rules:
        """Parse rules that a user wrote, on the command line or in a notebook.

        Args:
            pins: format by pattern on tensor names.
            min_bits: least width by pattern on tensor names.
            logits_bits: least width of the head; 0 for no rule.
            groups: patterns whose tensors share a format.
            fused: whether q, k, v and gate, up share a format.
            metric: what is summed and minimized.
            target: the hardware that the plan runs on.
            parity: what a budget that names a uniform export promises.
            precision: MNN's setting that the model ships with.

        Raises:
            InputError: an unknown format, width, metric, target, parity or precision; the message lists the known ones.
        """
        if metric not in set(Metric):
            msg = f"metric {metric!r} is unknown; use one of {', '.join(Metric)}"
            raise InputError(msg)
        return cls(
            logits_bits=logits_bits,
            pins={pattern: QuantFormat.parse(str(fmt)) for pattern, fmt in (pins or {}).items()},
            min_bits={pattern: _bits(pattern, bits) for pattern, bits in (min_bits or {}).items()},
            metric=Metric(metric),
            group_patterns=tuple(groups),
            fused=fused,
            target=find_target(target).at(parse_precision(precision)),
            parity=parse_parity(parity),
        )

    def check_patterns(self, card: ModelCard) -> None:
        """Check all patterns against a model's tensors.

        Raises:
            InputError: a pattern matches nothing, two contradict each other, or a pin is not right on the target; the
                message gives similar names, or the reason.
        """
        groups = make_groups(card, self.group_patterns, fused=self.fused)
        pinned = pinned_formats(groups, self.pins)
        for group in groups:
            if group.name in pinned:
                check_on_target(self.target, group, pinned[group.name])
        least_bits(groups, self.min_bits)

    @property
    def restricts(self) -> bool:
        """Whether the user asked for anything that a uniform export need not keep to."""
        return replace(self, uniform_scale_bits=16, uniform_fixed=None, parity=Rules.parity) != Rules()

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
            target=target_of(plan),
            metric=Metric(given.metric),
            parity=parse_parity(plan.parity),
        )

    @property
    def given(self) -> GivenRules:
        """The rules as a plan records them."""
        return GivenRules(
            tuple(Pin(pattern, fmt) for pattern, fmt in self.pins.items()),
            tuple(LeastBits(pattern, bits) for pattern, bits in self.min_bits.items()),
            self.group_patterns,
            self.fused,
            self.metric.value,
        )

    def seen(self, table: SensitivityTable) -> SensitivityTable:
        """The table as the target computes, under its ``precision`` and ``dynamic_option``.

        As it is if it does not say what that takes: then losses are those of x86 under the analysis's own option.
        """
        return table.computing(self.target.arithmetic, self.target.dynamic_option) or table

    def computes(self, table: SensitivityTable) -> bool:
        """Whether a table is as the target computes."""
        return table.computing(self.target.arithmetic, self.target.dynamic_option) is table

    def losses(self, table: SensitivityTable) -> dict[str, dict[str, float]]:
        """What is minimized, by tensor name and format name; formats that are not legal on the target are left out.

        No wider format has more than a narrower one, see `qplan.run.monotone`.

        Raises:
            InputError: the table does not hold the metric for every format.
        """
        value, kl = loss_of(self.metric, table), self.metric is Metric.kl
        ordered, found = table.ordered_kl(table.goal), dict[str, dict[str, float]]()
        for spec, row in zip(table.model.planned, table.losses().values(), strict=True):
            legal = [name for name in row if self.target.legal(spec, QuantFormat.parse(name))]
            if kl:
                found[spec.name] = {name: ordered[spec.name][name] for name in legal}
            else:
                found[spec.name] = ordered_losses({name: value(spec.name, name, row[name]) for name in legal}, {})
        return found

    def problem(self, card: ModelCard, losses: Mapping[str, Mapping[str, float]], limit_bytes: int | None) -> Problem:
        """State the problem for a model; see `build_problem`."""
        return build_problem(
            make_groups(card, self.group_patterns, fused=self.fused),
            losses,
            limit_bytes,
            logits_bits=self.logits_bits,
            pins=self.pins,
            min_bits=self.min_bits,
        )


def check_on_target(target: Target, group: TensorGroup, fmt: QuantFormat) -> None:
    """Refuse a pin that the target computes wrongly.

    Raises:
        InputError: it does; says why.
    """
    for member in group.members:
        defect = target.defect(member, member.resolve(fmt))
        if defect is not None and member.allows(member.resolve(fmt)):
            msg = f"--pin of {member.name} to {fmt}: {defect}"
            raise InputError(msg)


def target_of(plan: Plan) -> Target:
    """Where a plan runs, under the settings that it was planned for.

    Raises:
        InputError: there is no such target.
    """
    target = find_target(plan.target).at(plan.precision)
    return target if plan.arithmetic is None else target.scaling(plan.dynamic_option)


def parse_precision(text: str) -> Precision:
    """Read MNN's ``precision``.

    Raises:
        InputError: there is no such precision.
    """
    return one_of("precision", text, PRECISIONS)


def parse_parity(text: str) -> Parity:
    """Read the name of a parity.

    Raises:
        InputError: there is no such parity.
    """
    return one_of("parity", text, PARITIES)


def _bits(pattern: str, bits: str | int) -> int:
    if isinstance(bits, str) and _WIDTH.fullmatch(bits) is None:
        msg = f"--min-bits {pattern}={bits}: must be a whole number of bits, e.g. 6"
        raise InputError(msg)
    return int(bits)
