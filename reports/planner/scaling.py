"""Time and gap of the solver at the size of a large model: 80 layers x 7 tensors x 12 formats, two budgets.

Run with ``python reports/planner/scaling.py`` (about a minute on two cores); writes ``scaling.json`` and
``scaling.md`` beside it. The tensors are those of Llama-3-70B, bytes are exact, RAM is that of x86 (2, 3, 5 and 6 bits
expand to int8, fp16 to fp32), losses are invented: `smooth` falls by 4 per bit with a spread of e^1.5 between tensors
and 10 % noise, as measured ones do; `wild` is log-uniform over 1e-9..1e1, whatever the width. The logits rule holds.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from qplan.formats import QuantFormat, parse_formats
from qplan.planner.problem import build_problem
from qplan.planner.solver.program import Program, Row
from qplan.planner.solver.solver import solve
from qplan.tensors import Role, TensorGroup, TensorSpec

FORMATS = parse_formats("fp16,int8,int8-b0,int6,int5,int4,int4-b32,int4-b0,int3,int3-b32,int2,int2-b32")
SHAPES = {
    "q_proj": (8192, 8192),
    "k_proj": (1024, 8192),
    "v_proj": (1024, 8192),
    "o_proj": (8192, 8192),
    "gate_proj": (28672, 8192),
    "up_proj": (28672, 8192),
    "down_proj": (8192, 28672),
}
TIGHTNESS = ((0.06, 0.1), (0.1, 0.15), (0.15, 0.15), (0.2, 0.3), (0.4, 0.3))
"""Budgets for file bytes and RAM, from 0 for the smallest plan to 1 for all fp16."""
LAYERS = 80
TIME_LIMIT_S = 120.0
"""Limit on wall time; the times reported are processor time, which other processes do not disturb."""


@dataclass(frozen=True)
class Case:
    """One solve."""

    losses: str
    seed: int
    file_bytes_budget: float
    ram_budget: float
    binaries: int
    status: str
    objective_nats: float
    gap: float
    seconds: float


def specs() -> tuple[TensorSpec, ...]:
    """The linear tensors of Llama-3-70B."""
    layers = [
        TensorSpec(f"layers.{i}.{kind}", f"/layers.{i}/{kind}", i, kind, Role.MLP, *shape, bias=False)
        for i in range(LAYERS)
        for kind, shape in SHAPES.items()
    ]
    head = TensorSpec("lm_head", "/lm/lm_head", None, "lm_head", Role.HEAD, 128256, 8192, bias=False)
    return (*layers, head)


def ram_bytes(spec: TensorSpec, fmt: QuantFormat) -> int:
    """RAM on x86: 4 and 8 bits as stored, narrower and odd widths as int8, fp16 as fp32."""
    if fmt.is_float:
        return 4 * spec.weights
    codes = spec.weights // 2 if fmt.bits == 4 else spec.weights
    return codes + fmt.alpha_bytes(spec.out_features, spec.in_features)


def invent(kind: str, seed: int) -> dict[str, dict[str, float]]:
    """Losses by tensor and format."""
    random = np.random.default_rng(seed)
    losses = {}
    for spec in specs():
        if kind == "wild":
            values = np.exp(random.uniform(np.log(1e-9), np.log(10), len(FORMATS)))
        else:
            bits = np.array([f.effective_bits(spec.out_features, spec.in_features) for f in FORMATS])
            values = np.exp(random.normal(-6, 1.5)) * 4 ** (4 - bits) * np.exp(random.normal(0, 0.1, len(FORMATS)))
        losses[spec.name] = {f.name: float(v) for f, v in zip(FORMATS, values, strict=True)}
    return losses


def state(kind: str, seed: int, file_budget: float, ram_budget: float) -> Program:
    """One program with two budgets and the logits rule."""
    tensors = {spec.name: spec for spec in specs()}
    problem = build_problem(tuple(TensorGroup(spec.name, (spec,)) for spec in specs()), invent(kind, seed), None)
    problem = problem.limited("file bytes", "bytes", 0, lambda _, choice: choice.bytes)
    problem = problem.limited("RAM", "bytes", 0, lambda group, c: ram_bytes(tensors[group.name], c.format))
    program = problem.program()
    head_free = {"file bytes": file_budget, "RAM": ram_budget}
    rows = []
    for row in program.rows:
        if row.name in head_free:
            largest = row.used([0] * len(row.costs))
            rows.append(Row(row.name, row.costs, int(row.least + head_free[row.name] * (largest - row.least))))
        else:
            rows.append(row)
    return Program(program.values, tuple(rows))


def main() -> None:
    """Solve every case and write the table."""
    cases = []
    for kind in ("smooth", "wild"):
        for seed in range(3):
            for file_budget, ram_budget in TIGHTNESS:
                program = state(kind, seed, file_budget, ram_budget)
                began = time.process_time()
                solution = solve(program, time_limit_s=TIME_LIMIT_S)
                spent_s = time.process_time() - began
                objective = solution.objective if solution.picks else -1.0
                status = solution.status.value
                case = Case(
                    kind,
                    seed,
                    file_budget,
                    ram_budget,
                    solution.choices,
                    status,
                    objective,
                    solution.gap,
                    spent_s,
                )
                cases.append(case)
                print(case, file=sys.stderr)
    here = Path(__file__).parent
    machine = f"{platform.machine()}, Python {platform.python_version()}, SciPy {version('scipy')}"
    document = {"command": "python reports/planner/scaling.py", "machine": machine, "cases": [asdict(c) for c in cases]}
    (here / "scaling.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (here / "scaling.md").write_text(markdown(cases, machine), encoding="utf-8")


def markdown(cases: list[Case], machine: str) -> str:
    """The results as a page."""
    seconds = sorted(case.seconds for case in cases)
    proved = sum(case.status == "optimal" for case in cases)
    lines = [
        "# The solver at 80 layers x 7 tensors x 12 formats, two budgets and the logits rule",
        "",
        f"`python reports/planner/scaling.py`, {machine}.",
        (
            f"{len(cases)} programs of {cases[0].binaries} binaries: {proved} closed to a gap of 1e-4, "
            f"median {seconds[len(seconds) // 2]:.2f} s, worst {seconds[-1]:.2f} s of processor time."
        ),
        "",
        "| losses | seed | file bytes | RAM | status | sum of losses, nats | gap | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.losses} | {c.seed} | {c.file_bytes_budget:.0%} | {c.ram_budget:.0%} | {c.status} | "
        f"{c.objective_nats:.6g} | {c.gap:.1e} | {c.seconds:.2f} |"
        for c in cases
    ]
    return "\n".join([*lines, "", "Budgets: 0 % is the smallest plan, 100 % all fp16.", ""])


if __name__ == "__main__":
    main()
