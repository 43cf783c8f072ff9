"""Work in the units that machines differ in, and how long a machine takes for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine does per second, as measured in a few seconds, and what it has free."""

    processors: int
    """That this process may use."""
    flops: float
    """Floating-point operations of float32 matrix products, on all processors."""
    bf16_flops: float
    """The same of bfloat16 products, to which both factors are rounded first."""
    factor_flops: float
    """Operations of a float32 Cholesky factorization, on one processor."""
    values: float
    """Numbers that an elementwise step reads and writes, on all processors."""
    roundings: float
    """Weights that rounding ``auto`` puts into an integer format, without its matrix products, on one processor."""
    steps: float
    """Columns that rounding goes through one by one, whatever the rows, on one processor."""
    read: float
    """Bytes read from the disk that the run is on, and turned from half precision into float32."""
    written: float
    """Bytes written to it."""
    memory_bytes: int
    """Free, with what other programs give back when asked."""
    disk_bytes: int
    """Free where the run is."""

    @property
    def bf16_pays(self) -> bool:
        """Whether a product in bfloat16 is clearly faster than in float32; right to three digits, it is for gradients.

        Split into three products of halves it keeps float32's digits, which pays from three times its speed on.
        """
        return self.bf16_flops > 1.5 * self.flops  # noqa: PLR2004


@dataclass(frozen=True, kw_only=True)
class Work:
    """Amounts of work, in the units of `Machine`."""

    flops: float = 0.0
    half_flops: float = 0.0
    """Matrix products in bfloat16."""
    rounding_flops: float = 0.0
    """Matrix products within rounding, on one processor each."""
    engine_flops: float = 0.0
    """Products of the engine, on one processor each, as operations that take it as long in torch."""
    factor_flops: float = 0.0
    values: float = 0.0
    roundings: float = 0.0
    steps: float = 0.0
    read: float = 0.0
    written: float = 0.0
    seconds_anywhere: float = 0.0
    """Of what no measurement stands for, such as starting another program."""

    def __add__(self, other: Self) -> Self:
        """Both, one after the other."""
        mine, its = asdict(self), asdict(other)
        return type(self)(**{name: mine[name] + its[name] for name in mine})

    def times(self, count: float) -> Self:
        """The same so often."""
        return type(self)(**{field.name: count * getattr(self, field.name) for field in fields(self)})

    def seconds(self, machine: Machine, at_once: int = 1) -> float:
        """Expected wall-clock time, of which rounding takes place on ``at_once`` processors."""
        one = machine.flops / machine.processors
        alone = (self.rounding_flops + self.engine_flops) / one + self.factor_flops / machine.factor_flops
        alone += self.roundings / machine.roundings + self.steps / machine.steps
        together = self.flops / machine.flops + self.half_flops / machine.bf16_flops + self.values / machine.values
        moved = self.read / machine.read + self.written / machine.written
        return alone / max(1, min(at_once, machine.processors)) + together + moved + self.seconds_anywhere


NOTHING = Work()

REFERENCE = Machine(
    processors=2,
    flops=164e9,
    bf16_flops=387e9,
    factor_flops=22.5e9,
    values=5.6e9,
    roundings=3.8e6,
    steps=3036.0,
    read=730e6,
    written=410e6,
    memory_bytes=0,
    disk_bytes=0,
)
"""What `qplan.jobs.machine` measured on two processors of an AMD EPYC 9004: says whether a job is long at all."""

_MINUTES_FROM_S, _HOURS_FROM_S = 120, 7200


def spell_time(seconds: float) -> str:
    """A duration, as precise as it can be known."""
    if seconds < _MINUTES_FROM_S:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < _HOURS_FROM_S else f"{seconds / 3600:.1f} h"
