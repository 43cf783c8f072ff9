"""Whether the integers that were fitted to a plan ship: by whole models, on tokens that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.quantize.rounder import Rounder
from qplan.quantize.stored_cache import FittedTensors
from qplan.run.plan import Tuning
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.sensitivity.kept_logits import kept_logits
from qplan.sensitivity.metrics import TokenStats
from qplan.sensitivity.paired import change_of
from qplan.settings import Progress
from qplan.tuning.sequential import SequentialFit


@dataclass(frozen=True)
class Tuned:
    """What fitting the integers of a plan came to."""

    rounder: Rounder
    """Stores what ships."""
    record: Tuning


def judged(fit: SequentialFit, plan: Variant, tokens: NDArray[np.int64], progress: Progress | None = None) -> Tuned:
    """Take the fitted integers, with or without the head's, if the whole model loses less with them beyond doubt.

    A head that is tied to the embedding changes what the layers were fitted with, and need not gain.

    Args:
        fit: that has run.
        plan: as it will ship.
        tokens: int64 ``[rows, seq_len]``, to which nothing was fitted.
        progress: called with the passes that are done.
    """
    head = fit.rounder.loaded.architecture.head
    choices = [choice for choice in (fit.shipped(head=False), fit.formats) if choice]
    rounders = [fit.rounder, *(replace(fit.rounder, fitted=FittedTensors(fit.cache, choice)) for choice in choices)]
    before, *after = _losses(plan, rounders, tokens, progress)
    place = min(range(len(after)), key=lambda place: after[place].kl_nats)
    ships = change_of(before, after[place], tokens.shape[1]).is_fall
    record = Tuning(
        method="sequential",
        ships=ships,
        head=head in choices[place],
        tokens=int(tokens.size),
        before_nats=before.kl_nats,
        after_nats=after[place].kl_nats,
    )
    return Tuned(rounders[place + 1] if ships else fit.rounder, record)


def _losses(
    plan: Variant, rounders: Sequence[Rounder], tokens: NDArray[np.int64], progress: Progress | None
) -> Iterator[TokenStats]:
    """Losses of the plan with each rounder's integers."""
    rows = len(tokens)
    with kept_logits(rounders[0].loaded, tokens) as reference:
        for done, rounder in enumerate(rounders):
            found = variant_losses(
                rounder.loaded,
                torch.from_numpy(tokens),
                {"": plan},
                batch_size=1,
                engine_embedding=True,
                rounder=rounder,
                reference=reference,
            )
            if progress is not None:
                progress((done + 1) * rows, len(rounders) * rows)
            yield found[""]
