"""Random programs for the solver: losses over ten decades, several limits."""

from __future__ import annotations

import math

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
