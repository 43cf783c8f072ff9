"""What a user requests of a plan, and what that means for this model and machine."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qplan.choosing.costs import DECODE, PREFILL, RAM, decode_cost, prefill_cost, ram_cost
from qplan.choosing.parity import parity_limits, relimited
from qplan.cost.kv_cache import KvMode
from qplan.errors import InputError
from qplan.planner.budget import Budget
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import Cost, ResourceLimit
from qplan.planner.rules import Rules
from qplan.planner.size import NUMBER, Size
from qplan.run.folder import RunFolder
from qplan.run.kv_cache import PlannedCache
from qplan.run.plan import Plan
from qplan.settings import OBJECTIVES, Objective, one_of

if TYPE_CHECKING:  # the command line takes its defaults from here, and waits for no pyarrow
    from qplan.run.table import SensitivityTable

FILES = "file size"
KL, PERPLEXITY = "KL", "perplexity increase, as KL"
EVALUATIONS = 48
"""Most whole models that a repair measures by default, see `qplan.choosing.repair`."""
REPAIR_PASSES = 1
"""Passes, forwards and backwards over the calibration tokens, that a repair may take by default."""

_INCREASE = re.compile(rf"({NUMBER})\s*(%?)")
MOST_TOKENS = 2**24
"""Largest context: far above every model's, and its KV cache is exact in 64 bits."""
MOST_NATS, MOST_MS = 1e3, 1e9
"""Largest limits on the loss and on times: far above every model, and exact in the 64 bits that plans are solved in."""


@dataclass(frozen=True)
class Increase:
    """The largest accepted increase of perplexity."""

    amount: float
    relative: bool
    """Whether `amount` is in percent of FP32's perplexity; otherwise it is in perplexity."""

    @classmethod
    def parse(cls, text: str) -> Increase:
        """Read ``0.5`` or ``1%``.

        Raises:
            InputError: the text is neither.
        """
        match = _INCREASE.fullmatch(text.strip())
        if match is None or float(match[1]) <= 0:
            msg = f"--max-ppl-increase {text!r}: write a perplexity, e.g. 0.5, or a share of FP32's, e.g. 1%"
            raise InputError(msg)
        return cls(float(match[1]), match[2] == "%")

    def nll_nats(self, reference_nll_nats: float) -> float:
        """The increase of the mean negative log-likelihood, in nats, that it corresponds to."""
        share = self.amount / 100 if self.relative else self.amount / math.exp(reference_nll_nats)
        return math.log1p(share)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Budgets and limits; all of them must hold."""

    budgets: tuple[Budget, ...] = (Budget.parse("int8"),)
    objective: Objective = "loss"
    max_kl: float | None = None
    """Limit on the loss on held-out tokens, nats per token."""
    max_ppl_increase: Increase | None = None
    max_decode_ms: float | None = None
    max_prefill_ms: float | None = None
    max_ram: Size | None = None
    """Limit on RAM of the weights after loading, and of the KV cache where a context is given."""
    context: int | None = None
    """Tokens that the KV cache is to hold; None to leave it out of all counts."""
    kv: KvMode | None = None
    """How the KV cache is stored; None for what loses least."""
    cache: PlannedCache | None = None
    """The KV cache that was chosen, which takes its part of `max_ram`; not asked for by users."""
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        """Refuse values that make no sense.

        Raises:
            InputError: a limit is not above 0 or is larger than any model needs, or an objective other than the loss
                comes without a limit on the loss.
        """
        for option, value, most in (
            ("--max-kl", self.max_kl, MOST_NATS),
            ("--max-decode-ms", self.max_decode_ms, MOST_MS),
            ("--max-prefill-ms", self.max_prefill_ms, MOST_MS),
        ):
            if value is not None and not 0 < value <= most:
                msg = f"{option} {value:g}: must be above 0, finite and at most {most:g}"
                raise InputError(msg)
        if self.context is None and self.kv is not None:
            msg = f"--kv {self.kv} needs --context: how many tokens the KV cache is to hold"
            raise InputError(msg)
        if self.context is not None and not 1 <= self.context <= MOST_TOKENS:
            msg = f"--context {self.context}: must be at least 1 and at most {MOST_TOKENS:,}"
            raise InputError(msg)
        if self.objective != "loss" and self.max_kl is None and self.max_ppl_increase is None:
            msg = f"--objective {self.objective} needs a limit on the loss: give --max-kl or --max-ppl-increase"
            raise InputError(msg)

    def asked(self) -> tuple[str, ...]:
        """Options of everything that is asked for beyond the defaults, but for the hardware."""
        plain = PlanRequest()
        options = {"--budget": "budgets", "--objective": "objective", "--max-kl": "max_kl"}
        options |= {"--max-ppl-increase": "max_ppl_increase", "--max-ram": "max_ram"}
        options |= {"--context": "context", "--kv": "kv"}
        options |= {"--max-decode-ms": "max_decode_ms", "--max-prefill-ms": "max_prefill_ms"}
        own = [option for option, name in options.items() if getattr(self, name) != getattr(plain, name)]
        return (*own, *self.rules.asked())

    @property
    def label(self) -> str:
        """A name for the folder of its plan, e.g. ``int8``, ``int8-files`` or ``smallest-max-kl-0.001``."""
        increase = self.max_ppl_increase
        limits = (
            ("max-kl", self.max_kl),
            ("max-ppl", None if increase is None else f"{increase.amount:g}{'%' if increase.relative else ''}"),
            ("max-decode-ms", self.max_decode_ms),
            ("max-prefill-ms", self.max_prefill_ms),
            ("max-ram", None if self.max_ram is None else self.max_ram.text),
            ("context", self.context),
            ("kv", self.kv),
        )
        parts: list[str] = [self.objective] if self.objective != "loss" else []
        parts += [budget.text for budget in self.budgets]
        named = any(budget.bits is not None for budget in self.budgets)
        parts += [self.rules.parity] if named and self.rules.parity != Rules.parity else []
        parts += [
            f"{name}-{value:g}" if isinstance(value, float) else f"{name}-{value}"
            for name, value in limits
            if value is not None
        ]
        return "-".join(parts)

    def limits(self, table: SensitivityTable, run: RunFolder) -> tuple[ResourceLimit, ...]:
        """The limits on RAM and time: those given, and those that come with a budget that names a uniform export.

        Of two on the same, the lower one.

        Raises:
            InputError: a device profile is needed and missing.
        """
        found = []
        if self.max_ram is not None:
            found.append(ResourceLimit(ram_cost(self.rules, table, self.cache), self.max_ram.bytes / 1e6))
        if self.max_decode_ms is not None:
            found.append(ResourceLimit(decode_cost(table, run), self.max_decode_ms))
        if self.max_prefill_ms is not None:
            found.append(ResourceLimit(prefill_cost(table, run), self.max_prefill_ms))
        every = {limit.name: limit for limit in parity_limits(self.budgets, self.rules, table, run)}
        others = []
        for limit in found:
            if limit.name in every and limit.cost.offset != every[limit.name].cost.offset:
                others.append(limit)  # with a KV cache, which does not count for the uniform export's
            elif limit.name not in every or limit.limit < every[limit.name].limit:
                every[limit.name] = limit
        return (*every.values(), *others)

    def minimize(self, table: SensitivityTable, run: RunFolder) -> Cost | None:
        """The cost to minimize before the loss; None if the loss is the objective.

        Raises:
            InputError: a device profile is needed and missing.
        """
        if self.objective == "smallest":
            return Cost(FILES, "MB", 10**6, lambda spec, fmt: spec.bytes_in(fmt))
        return decode_cost(table, run) if self.objective == "fastest" else None

    def loss_ceilings(self, table: SensitivityTable, scales: Sequence[float] = (1.0, 1.0)) -> tuple[Ceiling, ...]:
        """Limits on the sum of single losses that keep the whole model within the requested loss.

        The log of the perplexity rises by the KL divergence if the text is as likely as the model expects. Whether it
        is shows when the plan is measured.

        Args:
            table: single losses, and how they add up.
            scales: factors on the limits on KL and perplexity, from measuring whole models.
        """
        wanted = []
        if self.max_kl is not None:
            wanted.append((KL, self.max_kl * scales[0]))
        if self.max_ppl_increase is not None:
            nats = self.max_ppl_increase.nll_nats(table.reference_nll_nats) * scales[1]
            wanted.append((PERPLEXITY, nats))
        losses = table.ordered_kl(table.goal)  # regardless of the metric that is minimized
        return tuple(Ceiling(name, losses, largest_sum(table, nats)) for name, nats in wanted)


def parse_objective(text: str) -> Objective:
    """Parse the name of an objective.

    Raises:
        InputError: there is no such objective.
    """
    return one_of("objective", text, OBJECTIVES)


def limits_of(plan: Plan, table: SensitivityTable, run: RunFolder) -> tuple[Ceiling | ResourceLimit, ...]:
    """The limits that a plan records, besides its budget.

    Raises:
        InputError: a device profile is needed and missing.
    """
    rules = Rules.of(plan)
    found: list[Ceiling | ResourceLimit] = []
    for limit in plan.limits:
        if limit.name == RAM:
            cache = None if limit.of else plan.kv
            found.append(ResourceLimit(ram_cost(rules, table, cache), limit.limit, limit.of))
        elif limit.name == DECODE:
            found.append(ResourceLimit(decode_cost(table, run), limit.limit, limit.of))
        elif limit.name == PREFILL:
            found.append(ResourceLimit(prefill_cost(table, run), limit.limit, limit.of))
        elif limit.of and (again := relimited(limit.of, limit.name, rules, table)) is not None:
            found.append(again)
        elif limit.name in (KL, PERPLEXITY):
            found.append(Ceiling(limit.name, table.ordered_kl(table.goal), limit.limit))
    return tuple(found)


def largest_sum(table: SensitivityTable, joint_nats: float) -> float:
    """The largest sum of single losses whose predicted joint loss is at most ``joint_nats``."""
    low, high = joint_nats / 64, joint_nats * 64
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if table.predict_joint(middle) <= joint_nats else (low, middle)
    return low
