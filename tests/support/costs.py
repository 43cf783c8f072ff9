"""Machines that count one kind of work, and an engine's costs."""

from __future__ import annotations

import math
from dataclasses import replace

from qplan.cost.engine import EngineCost
from qplan.cost.shape import Shape
from qplan.cost.work import REFERENCE
from qplan.settings import MEMORIES

ENDLESS = replace(
    REFERENCE,
    processors=1,
    flops=math.inf,
    bf16_flops=math.inf,
    factor_flops=math.inf,
    values=math.inf,
    roundings=math.inf,
    steps=math.inf,
    read=math.inf,
    written=math.inf,
)
"""Does everything at once."""

COUNTING = replace(ENDLESS, flops=1.0)
"""Its seconds are floating-point operations."""


def engine_cost(shape: Shape, seq_len: int, most_bytes: float = math.inf) -> EngineCost:
    """Costs of a plan of 8 bits, of all uniform models, and of few tokens."""
    return EngineCost(
        shape=shape,
        bits=8,
        uniform=(16, 8, 4),
        memories=MEMORIES,
        seq_len=seq_len,
        gate_tokens=16,
        decode_rows=2,
        prompt_tokens=32,
        decode_tokens=8,
        repeats=5,
        enough_s=4.0,
        most_bytes=most_bytes,
    )
