"""The peers' plans against qplan's of the same bytes, on the engine: one writer, one rounding, one setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qplan.artifact import sha256_json
from qplan.choosing.context import PlanningContext
from qplan.choosing.loss_limits import choose_requested
from qplan.choosing.request import PlanRequest
from qplan.choosing.sizes import fixed_bytes
from qplan.cost.file_bytes import file_bytes
from qplan.folding.analyzed import load_analyzed
from qplan.formats import QuantFormat
from qplan.jobs.skeletons import run_skeleton
from qplan.mnn.build.skeleton import Skeleton
from qplan.model.load import LoadedModel
from qplan.planner.budget import Budget
from qplan.planner.rules import Rules
from qplan.rounding.rounder import Rounder
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.sensitivity.kept_logits import KeptLogits, kept_logits
from qplan.settings import Memory
from reports.peers.engine import measure_plans
from reports.peers.plans import HEAD_BITS, Case, key_of
from reports.plans.study import KINDS, MEMORIES, Kind, Opened, Study

Formats = Mapping[str, QuantFormat]


@dataclass(frozen=True)
class Own:
    """qplan's plan within a peer's bytes."""

    total_bytes: int
    """Bytes of all files on disk."""
    kl_nats: float
    """KL on the engine, in prefill with ``dynamic_option`` 0, like all losses here."""
    stderr_nats: float
    """Standard error, over tokens, of the difference from the peer's."""
    least: float
    """Lower bound on the loss of any plan over these formats, as a ratio to the peer's: predicted from the proved bound
    of the sum of single losses, and from the sum of the peer's own; both of the planned model, folded or not."""


@dataclass(frozen=True)
class Rival:
    """One plan of a peer, and qplan's within the same bytes."""

    memory: Memory
    scorer: str
    asked_bits: float
    bits: float
    peer_bytes: int
    peer_kl_nats: float
    own: dict[Kind, Own]


@dataclass(frozen=True)
class Outcome:
    """A plan on the engine."""

    kl: np.ndarray
    """KL in nats at every token, float64 ``[tokens]``."""
    total_bytes: int


@dataclass(frozen=True)
class Bench:
    """Where plans of one kind are made and measured."""

    run: RunFolder
    context: PlanningContext
    skeleton: Skeleton

    @classmethod
    def of(cls, study: Study, original: LoadedModel, memory: Memory, kind: Kind) -> Bench:
        """Analyze the model, or read an earlier analysis."""
        run = study.analyzed(memory, *KINDS[kind])
        opened = Opened.of(run, load_analyzed(run, Opened.card(run), print).loaded)
        skeleton = run_skeleton(run, opened.rounder.loaded, None, print)
        context = PlanningContext(
            opened.table,
            fixed_bytes(skeleton, opened.table.model),
            opened.rounder,
            Rounder(original),
            opened.calibration.heldout,
            print,
        )
        return cls(run, context, skeleton)

    def plan(self, case: Case, limit_bytes: int) -> Plan:
        """What `qplan emit` chooses within a peer's bytes; its rule for the head applies where the peer has one too."""
        path = self.run.folder / f"rival-{limit_bytes}-{case.plans_head}.json"
        if not path.is_file():
            print(f"{case.label}: {limit_bytes:,} bytes, {self.run.folder.name}", flush=True)
            rules = Rules(logits_bits=0 if case.plans_head else HEAD_BITS)
            choose_requested(
                self.context, PlanRequest(budgets=(Budget.of_bytes(limit_bytes),), rules=rules), self.run
            ).write(path)
        return Plan.read(path)

    def measured(self, formats: Formats, reference: KeptLogits) -> Outcome:
        """The engine's losses of a plan, measured once."""
        rows = [reference.rows.tolist(), self.context.rounder.loaded.card.sha256, self.context.rounder.rounding]
        path = self.run.folder / f"engine-{sha256_json([key_of(formats), *rows])[:16]}.npz"
        if not path.is_file():
            memory, rounder = self.context.table.goal, self.context.rounder
            found = measure_plans(
                {"": formats}, self.skeleton, reference, memory, rounder=rounder, folder=self.run.folder
            )
            stats, total = found[""]
            np.savez(path, kl=stats.kl.numpy(), total_bytes=total)
        with np.load(path) as kept:
            return Outcome(kept["kl"], int(kept["total_bytes"]))

    def bytes_of(self, formats: Formats) -> int:
        """Predicted bytes of all files."""
        return file_bytes(self.context.table.model, formats, self.context.fixed).total

    def least(self, plan: Plan, peer: Formats) -> float:
        """See `Own.least`."""
        table = self.context.table
        losses = table.kl(table.goal)
        theirs = math.fsum(losses[name][fmt.name] for name, fmt in peer.items())
        return table.predict_joint(plan.solver.bound_nats) / table.predict_joint(theirs)


def rivals(
    study: Study, original: LoadedModel, cases: list[Case], memories: tuple[Memory, ...] = MEMORIES
) -> Iterator[Rival]:
    """All cases under some memory settings."""
    different = {key_of(case.formats): case for case in cases}
    with kept_logits(original, study.tokens(original).numpy()) as reference:
        for memory in memories:
            benches: dict[Kind, Bench] = {kind: Bench.of(study, original, memory, kind) for kind in KINDS}
            for case in different.values():
                yield _rival(case, memory, benches, reference)


def _rival(case: Case, memory: Memory, benches: Mapping[Kind, Bench], reference: KeptLogits) -> Rival:
    plain = benches["all"]
    limit = plain.bytes_of(case.formats)
    peer = plain.measured(case.formats, reference)
    own: dict[Kind, Own] = {}
    for kind, bench in benches.items():
        plan = bench.plan(case, limit)
        found = bench.measured(plan.formats, reference)
        difference = found.kl - peer.kl
        stderr = float(difference.std(ddof=1)) / math.sqrt(len(difference))
        own[kind] = Own(found.total_bytes, float(found.kl.mean()), stderr, bench.least(plan, case.formats))
    return Rival(memory, case.scorer, case.budget, case.bits, peer.total_bytes, float(peer.kl.mean()), own)
