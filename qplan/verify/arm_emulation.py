"""What torch computes with the arithmetic of ARM processors, on the tokens that a proof there runs on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qplan.cost.arm import PATHS
from qplan.cost.target import find_target
from qplan.rounding import Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.run.plan import Plan
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.settings import Progress
from qplan.verify.arm import ArmTrial


def predicted_on_arm(
    trial: ArmTrial, plan: Plan, rounder: Rounder, processors: Sequence[str], progress: Progress
) -> dict[tuple[str, str, str], float]:
    """Losses of a built plan by processor, precision and path, for `ArmTrial.predicted`.

    Processors with the same arithmetic share a loss.

    Args:
        trial: which tokens are run, and at which precisions.
        plan: what was built.
        rounder: chose the integers that it was built with.
        processors: names of targets.
        progress: called with the passes that are done, on all paths.
    """
    targets = {name: find_target(name) for name in processors}
    arithmetics = {(name, each): targets[name].arithmetics[each] for name in processors for each in trial.precisions}
    distinct = tuple(dict.fromkeys(arithmetics.values()))
    parts = {path: trial.part(path) for path in PATHS}
    passes = {path: len(distinct) * len(part.rows) for path, part in parts.items()}
    found: dict[tuple[str, str, str], float] = {}
    before = 0
    for path, part in parts.items():

        def told(done: int, _: int, before: int = before) -> None:
            progress(before + done, sum(passes.values()))

        variants: dict[str, Variant] = {
            known: Variant(plan.formats, plan.memory, Int8Activations(path, plan.dynamic_option, known))
            for known in distinct
        }
        losses = variant_losses(
            rounder.loaded,
            torch.from_numpy(part.rows),
            variants,
            batch_size=1,
            engine_embedding=True,
            rounder=rounder,
            reference=part,
            progress=told,
        )
        found |= {(*place, path): losses[known].kl_nats for place, known in arithmetics.items()}
        before += passes[path]
    return found
