"""The peers' plans against qplan's of the same bytes, on the engine: one model, one rounding, one writer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.pipeline.loss_limits import choose_wanted
from qplan.pipeline.runs import Run
from qplan.pipeline.sizes import fixed_bytes
from qplan.pipeline.skeletons import run_skeleton
from qplan.pipeline.task import Task
from qplan.pipeline.wanted import Wanted
from qplan.planner.plan import Plan
from qplan.planner.planning import Rules
from qplan.sensitivity.metrics import TokenStats
from qplan.sensitivity.rounding import Rounder
from qplan.sensitivity.table import Memory
from qplan.verify.reference import reference_logits
from reports.peers.engine import measure_plans
from reports.peers.plans import HEAD_BITS, Case, key_of
from reports.plans.study import MEMORIES, MENUS, Menu, Opened, Study

Formats = dict[str, QuantFormat]


@dataclass(frozen=True)
class Rival:
    """One plan of a peer, and qplan's within its bytes."""

    memory: Memory
    scorer: str
    asked_bits: float
    bits: float
    peer_bytes: int
    peer_kl_nats: float
    """On the engine, prefill, ``dynamic_option`` 0, like all here."""
    kl_nats: dict[Menu, float]
    """Of qplan's plan, by the formats it may choose from."""
    stderr_nats: dict[Menu, float]
    """Standard error, over tokens, of the difference from the peer's."""
    total_bytes: dict[Menu, int]
    least: dict[Menu, float]
    """What no plan over these formats can be below, over the peer's: predicted from the proved bound of the sum of
    single losses, and from the sum of the peer's own."""


def rivals(study: Study, loaded: LoadedModel, cases: list[Case]) -> Iterator[Rival]:
    """All cases under both memory settings."""
    for memory in MEMORIES:
        path = study.folder / f"{study.name}-{memory}-rivals.json"
        if not path.is_file():
            found = [asdict(row) for row in _compare(study, loaded, cases, memory)]
            path.write_text(json.dumps(found), encoding="utf-8")
        yield from (Rival(**row) for row in json.loads(path.read_text(encoding="utf-8")))


def _compare(study: Study, loaded: LoadedModel, cases: list[Case], memory: Memory) -> Iterator[Rival]:
    runs: dict[Menu, Run] = {menu: study.analysed(memory, menu, "off") for menu in MENUS}
    opened = {menu: Opened.of(run, loaded) for menu, run in runs.items()}
    skeleton = run_skeleton(runs["all"], loaded, None, print)
    tasks = {
        menu: Task(one.table, fixed_bytes(skeleton), one.rounder, Rounder(loaded), one.calibration.heldout, print)
        for menu, one in opened.items()
    }
    chosen = {(case.label, menu): _plan(task, case, runs[menu]) for case in cases for menu, task in tasks.items()}
    plans = {key_of(formats): formats for formats in _all_formats(cases, chosen.values())}
    with reference_logits(loaded, study.tokens(loaded).numpy()) as reference:
        found = measure_plans(
            plans, skeleton, reference, memory, rounder=opened["all"].rounder, folder=runs["all"].folder
        )
    for case in cases:
        peer, peer_bytes = found[key_of(case.formats)]
        ours = {menu: found[key_of(chosen[case.label, menu].formats)] for menu in MENUS}
        yield Rival(
            memory,
            case.scorer,
            case.budget,
            case.bits,
            peer_bytes,
            peer.kl_nats,
            {menu: stats.kl_nats for menu, (stats, _) in ours.items()},
            {menu: _stderr(stats, peer) for menu, (stats, _) in ours.items()},
            {menu: total for menu, (_, total) in ours.items()},
            {menu: _least(chosen[case.label, menu], case, tasks[menu]) for menu in MENUS},
        )


def _plan(task: Task, case: Case, run: Run) -> Plan:
    """What `qplan emit` chooses within the peer's bytes; its rule for the head holds where the peer has one too."""
    rules = Rules(logits_bits=0 if case.plans_head else HEAD_BITS)
    print(f"{case.label}: {case.total_bytes:,} bytes, memory {task.table.goal}", flush=True)
    return choose_wanted(task, Wanted((f"{case.total_bytes}B",), rules=rules), run)


def _all_formats(cases: Iterable[Case], plans: Iterable[Plan]) -> Iterator[Formats]:
    yield from (case.formats for case in cases)
    yield from (plan.formats for plan in plans)


def _stderr(ours: TokenStats, peer: TokenStats) -> float:
    difference = ours.kl - peer.kl
    return float(difference.std()) / math.sqrt(len(difference))


def _least(plan: Plan, case: Case, task: Task) -> float:
    losses = task.table.kl(task.table.goal)
    peer = math.fsum(losses[name][fmt.name] for name, fmt in case.formats.items())
    return task.table.predict_joint(plan.solver.bound_nats) / task.table.predict_joint(peer)
