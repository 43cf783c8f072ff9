"""Whether what was fitted to a plan ships: by whole models, on tokens that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import FittedTensors
from qplan.run.plan import Tuning
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.sensitivity.kept_logits import kept_logits
from qplan.sensitivity.metrics import TokenStats
from qplan.sensitivity.paired import change_of
from qplan.settings import DynamicOption, Progress
from qplan.tuning.scales import ScaleFit
from qplan.tuning.sequential import SequentialFit


@dataclass(frozen=True)
class Choice:
    """What may ship."""

    rounder: Rounder
    method: str
    """See `qplan.run.plan.Tuning`."""
    head: bool
    """Whether the head's integers were fitted in order."""
    steps: int = 0
    """Of the training of its scales, at most; 0 where they were not trained."""
    option: DynamicOption = 0
    """The ``dynamic_option`` that they were trained under."""
    layers: bool = False
    """Whether each layer was trained on the way."""


@dataclass(frozen=True)
class Tuned:
    """What fitting a plan as a whole came to."""

    rounder: Rounder
    """Stores what ships."""
    record: Tuning | None = None
    """None where nothing was tried yet."""
    first: TokenStats | None = None
    """Losses of what ships otherwise, on the tokens that decide; None where they were not measured."""
    stats: TokenStats | None = None
    """The same of what ships."""

    def on(self, rows: slice, seq_len: int) -> Tuned:
        """The same with losses on some rows alone, of ``seq_len`` tokens."""
        return replace(self, first=_on(self.first, rows, seq_len), stats=_on(self.stats, rows, seq_len))

    @property
    def base(self) -> str:
        """What training the scales begins with: ``own``, or ``sequential`` with what it took in."""
        if self.record is None or not self.record.ships:
            return "own"
        return "sequential" + (" head" if self.record.head else "") + (" layers" if self.record.layers else "")


def in_order(fit: SequentialFit) -> list[Choice]:
    """The integers of a fit that has run, with or without the head's.

    A head that is tied to the embedding changes what the layers were fitted with, and need not gain.
    """
    head = fit.rounder.loaded.architecture.head
    without = fit.shipped(head=False)
    return [
        Choice(
            replace(fit.rounder, fitted=FittedTensors(fit.cache, formats)),
            "sequential",
            head in formats,
            layers=fit.trains,
        )
        for formats in ([without] if without == fit.formats else [without, fit.formats])
        if formats
    ]


def with_scales(fit: ScaleFit, before: Tuned) -> Choice:
    """The scales of a fit that has run, on top of the integers that shipped before."""
    rounder = replace(fit.rounder, fitted=FittedTensors(fit.cache, fit.formats))
    fitted = before.record if before.base != "own" else None
    option = fit.plan.activations.dynamic_option
    if fitted is None:
        return Choice(rounder, "scales", head=False, steps=fit.schedule.steps, option=option)
    return Choice(rounder, "sequential+scales", fitted.head, fit.schedule.steps, option, fitted.layers)


def judged(
    before: Tuned,
    choices: Sequence[Choice],
    plan: Variant,
    tokens: NDArray[np.int64],
    progress: Progress | None = None,
) -> Tuned:
    """Take the choice with which the whole model loses least, if that is less than before beyond doubt.

    Args:
        before: what ships otherwise.
        choices: what was fitted.
        plan: as it will ship.
        tokens: int64 ``[rows, seq_len]``, to which nothing was fitted; those that losses before are of.
        progress: called with the passes that are done.
    """
    rounders = [choice.rounder for choice in choices]
    length = tokens.shape[1]
    known = [] if before.stats is None else [before.stats]
    stats = [*known, *_losses(plan, rounders if known else [before.rounder, *rounders], tokens, progress)]
    place = min(range(1, len(stats)), key=lambda place: stats[place].kl_nats)
    best, found = choices[place - 1], stats[place]
    first = before.first or stats[0]
    ships = change_of(stats[0], found, length).is_fall
    if not ships and before.record is not None:
        return before
    record = Tuning(
        method=best.method,
        ships=ships,
        head=best.head,
        tokens=int(tokens.size),
        before_nats=first.kl_nats,
        after_nats=found.kl_nats,
        steps=best.steps,
        dynamic_option=best.option,
        layers=best.layers,
    )
    return Tuned(best.rounder, record, first, found) if ships else Tuned(before.rounder, record, first, stats[0])


def _on(stats: TokenStats | None, rows: slice, seq_len: int) -> TokenStats | None:
    if stats is None:
        return None
    parts = (stats.kl, seq_len), (stats.same_top, seq_len), (stats.nll, seq_len - 1)
    return TokenStats(*(values.view(-1, length)[rows].flatten() for values, length in parts))


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
