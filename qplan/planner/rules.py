"""What a user wants besides a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes
from qplan.cost.target import DEFAULT_TARGET, Target, find_target
from qplan.formats import QuantFormat
from qplan.planner.groups import make_groups
from qplan.planner.metric import Metric, loss_of
from qplan.planner.problem import Problem, build_problem
from qplan.run.plan import GivenRules, LeastBits, Pin, Plan
from qplan.run.table import SensitivityTable


@dataclass(frozen=True)
class Rules:
    """What the user wants besides a budget."""

    logits_bits: int = 8
    """The head and a tied embedding have at least this width, and at least the others' mean; 0 for no rule."""
    pins: Mapping[str, QuantFormat] = field(default_factory=dict)
    """Format by pattern."""
    min_bits: Mapping[str, int] = field(default_factory=dict)
    """Least width by pattern."""
    metric: Metric = Metric.kl
    """What is summed and minimized."""
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

    def losses(self, table: SensitivityTable) -> dict[str, dict[str, float]]:
        """What is minimized, by tensor name and name of a format that is legal on the target.

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
            make_groups(card, self.group_patterns, fused=self.fused),
            losses,
            limit_bytes,
            logits_bits=self.logits_bits,
            pins=self.pins,
            min_bits=self.min_bits,
        )
