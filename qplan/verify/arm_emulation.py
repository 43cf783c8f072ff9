"""What torch computes with the arithmetic of ARM processors, on the tokens that a proof there runs on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from qplan.cost.arm import PATHS
from qplan.cost.target import find_target
from qplan.quantize import EnginePath, Int8Activations
from qplan.quantize.rounder import Rounder
from qplan.run.plan import Plan
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.settings import Progress
from qplan.verify.arm import ArmTrial


def predicted_on_arm(
    trial: ArmTrial, plan: Plan, rounder: Rounder, processors: Sequence[str], progress: Progress | None = None
) -> dict[tuple[str, str, str], float]:
    """Losses of a built plan by processor, precision and path, for `ArmTrial.predicted`.

    Processors with the same arithmetic share a loss.

    Args:
        trial: how many tokens are run, and at which precisions.
        plan: what was built.
        rounder: chose the integers that the plan was built with.
        processors: names of targets.
        progress: called with the passes that are done.
    """
    rows = torch.from_numpy(trial.reference.rows)
    tokens, steps = trial.tokens
    length = min(tokens, rows.shape[1])
    parts = {"prefill": rows[: max(1, tokens // rows.shape[1]), :length], "decode": rows[:1, :steps]}
    found: dict[tuple[str, str, str], float] = {}
    compared = partial(variant_losses, rounder.loaded, engine_embedding=True, rounder=rounder, batch_size=1)
    for path in PATHS:
        each: EnginePath = "decode" if path == "decode" else "prefill"
        wanted = {
            (name, precision): Int8Activations(each, plan.dynamic_option, find_target(name).arithmetics[precision])
            for name in processors
            for precision in trial.precisions
        }
        variants = {str(one): Variant(plan.formats, plan.memory, one) for one in wanted.values()}
        losses = compared(tokens=parts[path], variants=variants, progress=progress)
        found |= {(*place, path): losses[str(one)].kl_nats for place, one in wanted.items()}
    return found
