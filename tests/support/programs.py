"""Programs for the solver: random ones with losses over ten decades and several limits, and a stored one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from qplan.planner.solver.program import Program, Row

LOSSES = st.floats(math.log(1e-9), math.log(10.0)).map(math.exp)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    values = tuple(tuple(draw(LOSSES) for _ in range(n)) for n in shape)
    rows = []
    for index in range(draw(st.integers(0, 4))):
        size = draw(st.sampled_from([4, 1_000, 10**9]))
        costs = tuple(tuple(draw(st.integers(-size if index > 1 else 0, size)) for _ in range(n)) for n in shape)
        low, high = sum(min(c) for c in costs), sum(max(c) for c in costs)
        rows.append(Row(f"row {index}", costs, draw(st.integers(low - 1, high))))
    return Program(values, tuple(rows))


def untied(seed: int, share: float = 1.0) -> Program:
    """An untied Llama (width 256, 3 layers) at int8 under memory low, with losses drawn within 20 %.

    Embedding and head are the larger part of the model, so that relaxations are loose until both are decided. Int8
    activations lose most of what there is to lose: fp16 for some tensors and 2 bits for others beat what is between.

    Args:
        seed: 0 gives the losses as measured.
        share: of the file's bytes that are the limit.
    """
    stored = json.loads((Path(__file__).parent / "untied.json").read_text(encoding="utf-8"))
    random = np.random.default_rng(seed)
    values = tuple(tuple(v * (random.lognormal(0, 0.2) if seed else 1.0) for v in row) for row in stored["values"])
    rows = [Row(row["name"], tuple(map(tuple, row["costs"])), row["limit"]) for row in stored["rows"]]
    rows[0] = replace(rows[0], limit=int(share * rows[0].limit))
    return Program(values, tuple(rows))
