"""Three solvers on the same programs: this one, one scaled call of HiGHS, and this one when it decided one group.

    git archive 6a3a2b7 qplan | tar -x -C BEFORE
    python -m reports.planner.solvers --before BEFORE --run RUN

Writes ``solvers.md`` beside it, in about ten minutes. Times are ratios of processor time on the same program in the
same minute; without ``--before`` or ``--run`` these columns and rows are left out. ``milp`` is `scipy.optimize.milp`
with a relative gap of 1e-4 on what is left without impossible and dominated choices, values scaled by the linear
relaxation's bound and rows to 1, and called again with lower limits where its answer breaks a limit in integers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from qplan.cost.target import find_target
from qplan.planner.ceiling import Ceiling
from qplan.planner.moves import nearest_moves
from qplan.planner.problem import Problem
from qplan.planner.rules import Rules
from qplan.planner.solver.dominance import Grid, drop_dominated, drop_impossible
from qplan.planner.solver.program import Program, Row, Status
from qplan.planner.solver.relaxation import relax
from qplan.planner.solver.solver import solve
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from reports.planner.scaling import TIGHTNESS, state
from tests.support import programs

TIME_LIMIT_S = 60.0


@dataclass(frozen=True)
class Case:
    """One program of a family."""

    family: str
    program: Program
    brute: bool = False
    """Whether it is small enough to try all picks."""


@dataclass(frozen=True)
class Answer:
    """A solver's answer, and its time."""

    status: str
    picks: tuple[int, ...]
    bound: float
    cpu_s: float


def here(program: Program) -> Answer:
    """The solver of this tree."""
    began = time.process_time()
    found = solve(program, time_limit_s=TIME_LIMIT_S)
    return Answer(found.status.value, found.picks, found.bound, time.process_time() - began)


def one_milp(program: Program) -> Answer:
    """One scaled call of HiGHS."""
    began = time.process_time()
    status, picks, bound = _one_milp(program)
    return Answer(status, picks, bound, time.process_time() - began)


def _one_milp(program: Program) -> tuple[str, tuple[int, ...], float]:
    grid = drop_impossible(Grid.of(program))
    if not grid.solvable:
        return Status.INFEASIBLE, (), math.inf
    grid = drop_dominated(grid)
    relaxation = relax(grid)
    if relaxation is None:
        return Status.INFEASIBLE, (), math.inf
    group, choice = grid.places
    lowest, least = np.where(grid.alive, grid.values, np.inf).min(axis=1), grid.least_costs()
    values = grid.values[group, choice] - lowest[group]
    above = (grid.costs[:, group, choice] - least[:, group]).astype(np.float64)
    size = np.maximum(above.max(axis=1, initial=1.0), 1.0)
    limits = (grid.limits - least.sum(axis=1)) / size
    base, largest = math.fsum(lowest), max(float(values.max()), 1e-300)
    # HiGHS stops at an absolute gap of 1e-6 whatever it is given, and accepts violations of 1e-6
    scale = min(1e3 / max(relaxation.bound - base, 1e-300), 1e8 / largest)
    columns = np.arange(len(group))
    once = LinearConstraint(csr_matrix((np.ones(len(columns)), (group, columns))), 1, 1)
    bound = relaxation.bound
    for attempt in range(5):
        within = [LinearConstraint(csr_matrix(above / size[:, None]), -np.inf, limits)] if len(limits) else []
        result = cast("Any", milp)(
            values * scale,
            constraints=[once, *within],
            bounds=Bounds(0, 1),
            integrality=np.ones(len(values), dtype=np.int8),
            options={"mip_rel_gap": 1e-4, "time_limit": TIME_LIMIT_S},
        )
        if attempt == 0 and result.mip_dual_bound is not None:
            bound = max(bound, base + result.mip_dual_bound / scale)
        if result.x is None:
            return (Status.INFEASIBLE if result.status == 2 and attempt == 0 else Status.TIME_LIMIT), (), bound
        picks = np.zeros(grid.alive.shape[0], dtype=np.intp)
        order = np.argsort(result.x, kind="stable")
        picks[group[order]] = choice[order]
        broken = grid.costs[:, np.arange(len(picks)), picks].sum(axis=1) > grid.limits
        if not broken.any():
            return Status.OPTIMAL, tuple(int(pick) for pick in picks), bound
        limits = limits - np.where(broken, 3e-6 * (attempt + 1), 0.0)
    return Status.TIME_LIMIT, (), bound


WORKER = """
import json, sys, time
from qplan.planner.solver.program import Program, Row
from qplan.planner.solver.solver import solve
for line in sys.stdin:
    values, rows, limit = json.loads(line)
    program = Program(tuple(map(tuple, values)), tuple(Row(n, tuple(map(tuple, c)), l) for n, c, l in rows))
    began = time.process_time()
    found = solve(program, time_limit_s=limit)
    spent = time.process_time() - began
    print(json.dumps([found.status.value, found.picks, found.bound, spent]), flush=True)
"""


class Before:
    """The solver of another checkout, in a process of its own."""

    def __init__(self, checkout: Path) -> None:
        """Start its process."""
        self._child = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
        )

    def __call__(self, program: Program) -> Answer:
        """Solve a program there."""
        assert self._child.stdin is not None  # noqa: S101 - of Popen, for mypy
        assert self._child.stdout is not None  # noqa: S101
        rows = [(row.name, row.costs, row.limit) for row in program.rows]
        print(json.dumps([program.values, rows, TIME_LIMIT_S]), file=self._child.stdin, flush=True)
        status, picks, bound, spent = json.loads(self._child.stdout.readline())
        return Answer(status, tuple(picks), bound, spent)


def large() -> Iterator[Case]:
    """80 layers x 7 tensors x 12 formats, two budgets and the logits rule; see `reports.planner.scaling`."""
    for kind in ("smooth", "wild"):
        for seed, tightness in itertools.product(range(2), TIGHTNESS):
            yield Case(f"large, {kind}", state(kind, seed, *tightness))
    for kind in ("smooth", "wild"):
        for seed, tightness in itertools.product(range(10, 13), TIGHTNESS):
            yield Case(f"large, {kind}, held out", state(kind, seed, *tightness))
    for tightness in TIGHTNESS:
        program = state("smooth", 0, *tightness)
        alike = (*(program.values[index % 7] for index in range(len(program.values) - 1)), program.values[-1])
        yield Case("large, layers alike", replace(program, values=alike))


def invented(
    family: str,
    count: int,
    groups: int,
    *,
    decades: float = 10.0,
    rows: int = 2,
    ties: bool = False,
    brute: bool = False,
) -> Iterator[Case]:
    """Random values and costs, each row's limit somewhere between its least and its most."""
    random = np.random.default_rng(len(family) + 1000 * groups)
    for _ in range(count):
        width = int(random.integers(2, 6 if brute else 14))
        exponents = random.uniform(-decades + 1, 1, (groups, width))
        values = random.integers(0, 4, (groups, width)).astype(float) if ties else 10**exponents
        stated = []
        for index in range(rows):
            costs = random.integers(0, 5 if ties else 10**6, (groups, width)) * int(random.choice([1, 4096]))
            low, high = costs.min(axis=1).sum(), costs.max(axis=1).sum()
            limit = int(low + random.uniform(0.0, 0.6) * (high - low))
            stated.append(Row(f"row {index}", tuple(tuple(map(int, row)) for row in costs), limit))
        yield Case(family, Program(tuple(tuple(map(float, row)) for row in values), tuple(stated)), brute)


def untied() -> Iterator[Case]:
    """A stored program of a small model whose embedding is not tied to its head, at three limits."""
    for seed, share in itertools.product(range(4), (0.7, 0.85, 1.0)):
        yield Case("untied", programs.untied(seed, share))


def opposed(count: int, groups: int) -> Iterator[Case]:
    """Two rows that pull in opposite directions, their limits a unit above and below what both allow together."""
    random = np.random.default_rng(groups)
    for index in range(count):
        costs = tuple((0, int(cost)) for cost in random.integers(1, 10**6, groups))
        other = tuple((c, 0) for _, c in costs)
        half = sum(cost for _, cost in costs) // 2
        values = tuple((float(v), 0.0) for v in 10 ** random.uniform(-9, 1, groups))
        short = sum(cost for _, cost in costs) - half - (1 if index % 2 else -20_000)
        family = "cannot be" if index % 2 else "barely can"
        yield Case(family, Program(values, (Row("up", costs, half), Row("down", other, short))))


def of_run(run: Path) -> Iterator[Case]:
    """A frontier, a slider, limits on RAM and another loss, smallest plans and repair's moves from one table."""
    table, rules = SensitivityTable.read(RunFolder(run).sensitivity), Rules()
    card, target = table.model, find_target("cpu-x86")
    problem = rules.problem(card, rules.losses(table), None)
    low = problem.picked_bytes(solve(problem.smallest_program()).picks)
    high = problem.picked_bytes(solve(problem.program()).picks)

    def at(stated: Problem, points: int) -> Iterator[Program]:
        for limit in np.geomspace(low, high, points):
            yield replace(stated, limit_bytes=round(float(limit))).program()

    yield from (Case("run: frontier of 24", program) for program in at(problem, 24))
    yield from (Case("run: slider of 16", program) for program in at(problem, 16))
    cost = target_ram(card, target)
    most = sum(max(cost(group, choice) for choice in group.choices) for group in problem.groups)
    with_ram = problem.limited("RAM", "bytes", int(0.4 * most), cost)
    yield from (Case("run: with RAM", program) for program in at(with_ram, 8))
    for memory in table.memories[1:]:
        losses = table.kl(memory)
        least = math.fsum(min(row.values()) for row in losses.values())
        ceiling = Ceiling("other memory", losses, 50 * least)
        yield from (Case("run: with a ceiling", program) for program in at(ceiling.applied(problem, card), 8))
    for nats in np.geomspace(1e-4, 1e-2, 8):
        limited = Ceiling("loss", table.kl(table.goal), float(nats)).applied(problem, card)
        yield Case("run: smallest", limited.smallest_program())
    random = np.random.default_rng(0)
    for program in at(problem, 8):
        picks = solve(program).picks
        if picks:
            yield Case("run: repair's moves", _moves(program, picks, random))
    yield from (Case("run: below the smallest", replace(problem, limit_bytes=low - k).program()) for k in (1, 1000))


def target_ram(card: Any, target: Any) -> Callable[[Any, Any], int]:  # noqa: ANN401 - short
    """RAM of a group's choice."""

    def cost(group: Any, choice: Any) -> int:  # noqa: ANN401
        specs = [card.tensor(name) for name in group.members]
        return sum(target.ram_bytes(spec, choice.format.resolve(spec.in_features)) for spec in specs)

    return cost


def _moves(program: Program, picks: tuple[int, ...], random: np.random.Generator) -> Program:
    """What `qplan.planner.moves.combine` solves: the plan's choice and some moves, with what they changed."""
    moves = nearest_moves(program, picks, 15)
    options = [[pick, *(m.choice for m in moves if m.group == g)] for g, pick in enumerate(picks)]
    values = tuple((1e-5, *map(float, 1e-5 + random.normal(0, 3e-6, len(o) - 1))) for o in options)
    rows = tuple(
        Row(row.name, tuple(tuple(row.costs[g][c] for c in o) for g, o in enumerate(options)), row.limit)
        for row in program.rows
    )
    return Program(values, rows)


def brute_force(program: Program) -> float:
    """The least value over all picks, infinite if none hold."""
    every = itertools.product(*(range(len(values)) for values in program.values))
    return min((program.value(picks) for picks in every if program.holds(picks)), default=math.inf)


@dataclass
class Tally:
    """One solver on one family."""

    worst: float = 0.0
    """Largest relative distance from the best known value."""
    missed: int = 0
    """Programs that have a plan, but for which it found none."""
    wrong: int = 0
    """Wrong statuses, picks that break a limit, and bounds above a plan that exists."""
    unproved: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    """Largest ratio of its time to this tree's, among programs that take a tenth of a second."""

    def add(self, program: Program, answer: Answer, best: float, reference_s: float) -> None:
        """Count one answer."""
        self.seconds += answer.cpu_s
        if max(reference_s, answer.cpu_s) > 0.1:
            self.slowest = max(self.slowest, answer.cpu_s / max(reference_s, 1e-3))
        self.unproved += answer.status == Status.TIME_LIMIT
        if not answer.picks:
            self.missed += math.isfinite(best)
            self.wrong += answer.status == Status.INFEASIBLE and math.isfinite(best)
            return
        self.wrong += not program.holds(answer.picks) or answer.bound > best + 1e-9 * abs(best)
        self.worst = max(self.worst, (program.value(answer.picks) - best) / abs(best) if best else 0.0)


def main() -> None:
    """Solve every program with every solver, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="folder with the tree that has the exact solver")
    parser.add_argument("--run", type=Path, help="run folder whose programs to solve as well")
    given = parser.parse_args()
    solvers: dict[str, Callable[[Program], Answer]] = {"states": here, "milp": one_milp}
    solvers |= {"before": Before(given.before)} if given.before else {}
    cases = itertools.chain(
        large(),
        invented("tiny, against brute force", 300, 5, rows=2, brute=True),
        invented("tiny, four limits, against brute force", 100, 5, rows=4, brute=True),
        invented("ties, against brute force", 100, 6, rows=2, ties=True, brute=True),
        invented("ties", 20, 60, rows=2, ties=True),
        invented("ten decades, one limit", 40, 43, rows=1),
        invented("ten decades, four limits", 20, 43, rows=4),
        invented("two decades, three limits", 20, 100, rows=3, decades=2),
        opposed(20, 30),
        untied(),
        of_run(given.run) if given.run else (),
    )
    tallies: dict[str, dict[str, Tally]] = {}
    counts: dict[str, int] = {}
    for case in cases:
        answers = {name: solver(case.program) for name, solver in solvers.items()}
        held = [case.program.value(a.picks) for a in answers.values() if a.picks and case.program.holds(a.picks)]
        best = brute_force(case.program) if case.brute else min(held, default=math.inf)
        counts[case.family] = counts.get(case.family, 0) + 1
        row = tallies.setdefault(case.family, {name: Tally() for name in solvers})
        for name, answer in answers.items():
            row[name].add(case.program, answer, best, answers["states"].cpu_s)
        print(case.family, counts[case.family], {n: round(a.cpu_s, 3) for n, a in answers.items()}, file=sys.stderr)
    Path(__file__).with_suffix(".md").write_text(markdown(tallies, counts), encoding="utf-8")


def markdown(tallies: dict[str, dict[str, Tally]], counts: dict[str, int]) -> str:
    """The results as a page."""
    names = list(next(iter(tallies.values())))
    lines = [
        "# Three solvers on the same programs",
        "",
        "`python -m reports.planner.solvers --before BEFORE --run RUN`; the script tells how. *states* is the solver",
        "of this tree, *milp* one scaled call of HiGHS at a relative gap of 1e-4, *before* this tree's when it decided",
        "the largest group alone, and not an untied embedding beside the head. *Worst* is the largest relative",
        "distance from the best plan known (by brute force where the family says so); *wrong* counts statuses and",
        "bounds that are not true and plans that break a limit; *open* those given back unproved or without an answer",
        "after 60 s. Times are sums of processor time over the family relative to *states*; in brackets the largest",
        "ratio of one program that takes 0.1 s.",
        "The widths of the search were chosen among a dozen on the other programs of *large*, one of *alike*",
        "and those of *slider* and *three limits*; *held out* are seeds that were looked at once, afterwards.",
        "",
        "| programs | number | " + " | ".join(f"{n}: worst | wrong | open | time" for n in names) + " |",
        "|---|---" + "|---|---|---|---" * len(names) + "|",
    ]
    for family, row in tallies.items():
        cells = []
        for tally in row.values():
            ratio = tally.seconds / max(row["states"].seconds, 1e-9)
            took = f"{ratio:.2f}" + (f" ({tally.slowest:.1f})" if tally.slowest else "")
            cells += [f"{tally.worst:.1e}" if tally.worst > 1e-12 else "0"]
            cells += [str(tally.wrong), str(max(tally.unproved, tally.missed)), took]
        lines.append(f"| {family} | {counts[family]} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
