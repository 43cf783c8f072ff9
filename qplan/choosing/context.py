"""The planning context: the losses and rules that plans are made from, and measurements of whole models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.card import ModelCard
from qplan.choosing.halves import Halves
from qplan.cost.emit import COMPARING, ROUNDING
from qplan.cost.file_bytes import FixedBytes
from qplan.formats import Formats, QuantFormat, applies, garbled
from qplan.planner.rules import Rules
from qplan.rounding import Int8Activations
from qplan.rounding.round_all import pending, round_all
from qplan.rounding.rounder import Rounder
from qplan.run.safetensors_file import ALL
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.sensitivity.metrics import TokenStats, join
from qplan.settings import NOTHING_NATS, Memory, Progress, Say, Visit, without_half
from qplan.uniform import NEAREST

EVEN, ODD = slice(0, None, 2), slice(1, None, 2)
"""Halves of the held-out rows: whole models are measured on one, or on both."""

_DOUBT_STDERRS = 5.0
"""Standard errors, over single tokens, by which a plan must lose less than another on one half of the rows, for the
other to be left out. Tokens of a sequence depend on each other: this stands for two or three."""


@dataclass(frozen=True)
class PlanningContext:
    """Everything that all plans of one emit have in common."""

    table: SensitivityTable
    """Losses of single tensors."""
    fixed: FixedBytes
    """Bytes that every plan ships."""
    rounder: Rounder
    """Chooses the integers of plans."""
    nearest: Rounder
    """Rounds uniform models to nearest, as MNN's exporter would build them from the model as the user gave it."""
    heldout: NDArray[np.int64]
    """Tokens that whole models are measured on, int64 ``[rows, seq_len]``."""
    say: Say
    """Called with a line about each step."""
    rules: Rules = field(default_factory=Rules)
    """What the user asks for besides budgets and limits."""
    kept: KeptLogits | None = None
    """What the model in FP32 says of the held-out tokens; None to compute it whenever it is needed. A folded model and
    the one before folding compute the same."""
    known: dict[object, TokenStats] = field(default_factory=dict)
    """Whole models on half of the rows that were measured already; may be shared by several contexts."""
    halves: Halves = field(default_factory=Halves)
    """Whether these are measured by products of bfloat16; shared by contexts that share `known`."""
    hqq: Rounder | None = None
    """Rounds uniform models as MNN's exporter does with ``--hqq``; None to keep nothing that it rounds."""
    rivals: int = 3
    """Uniform exports to measure as whole models: the best by its weights need not be the best on tokens."""
    jobs: int = 1
    """Tensors to round at a time."""
    visit: Visit | None = None
    """Called with the stage that something belongs to, where tensors are rounded or whole models measured."""

    @property
    def pass_tokens(self) -> int:
        """Tokens of a pass: those that the analysis ran forwards and backwards."""
        return self.table.conditions.samples * self.table.conditions.seq_len

    def exporter(self, rounding: str) -> Rounder:
        """What rounds uniform models as MNN's exporter would, with one of its roundings."""
        if rounding == self.nearest.rounding:
            return self.nearest
        return self.hqq or Rounder(self.nearest.loaded, rounding)

    def whole(
        self,
        plans: Mapping[str, Formats],
        memory: Memory | None = None,
        *,
        rounder: Rounder | None = None,
        rows: slice = ALL,
        stage: str = COMPARING,
        exact: bool = False,
    ) -> dict[str, TokenStats]:
        """Measure whole models in torch, with the same int8 activations as the table's losses.

        Args:
            plans: formats by tensor name, by label.
            memory: memory setting; the table's goal by default.
            rounder: chooses the integers; the context's by default.
            rows: of `heldout`: a half, or all.
            stage: that this belongs to, see `qplan.cost.emit`.
            exact: whether products must be float32, as the losses are told and not only compared.
        """
        variants = {label: self._variant(formats, memory or self.table.goal) for label, formats in plans.items()}
        return self._measured(variants, rounder or self.rounder, rows, stage, exact=exact)

    def against(self, formats: Formats, uniform: Formats, rounding: str = NEAREST) -> dict[Memory, float]:
        """Ratio of a plan's joint loss to that of a uniform export, by memory setting; 1 where both lose nothing.

        Of half of the rows, where the plan loses less there beyond doubt under all settings.
        """
        return self._ratios(formats, uniform, rounding, EVEN) or self._ratios(formats, uniform, rounding, ALL)

    def nearest_nats(self, formats: Formats) -> tuple[float, float]:
        """Mean KL per token of a plan, and of the same formats rounded to nearest, on half of the rows."""
        ours, theirs = (
            self.whole({"": formats}, rounder=rounder, rows=EVEN)[""] for rounder in (self.rounder, self.nearest)
        )
        return ours.kl_nats, theirs.kl_nats

    def round(self, plans: Iterable[Formats], rounder: Rounder) -> None:
        """Choose the integers of plans, several tensors at a time, where the run does not hold them."""
        wanted: dict[str, dict[QuantFormat, None]] = {spec.name: {} for spec in self.table.model.tensors}
        for formats in plans:
            for name, fmt in formats.items():
                if name in wanted:  # an embedding's rows are rounded as they are looked up
                    wanted[name][fmt] = None
        menu = {name: tuple(formats) for name, formats in wanted.items()}
        missing = pending(rounder, menu)
        if missing:
            share = sum(self.table.model.tensor(name).weights for name, _ in missing) / _weights(self.table.model)
            told = f"choosing integers: {len(missing)} tensors, {share:.0%} of all weights, {self.jobs} at a time"
            if self.visit is None:
                self.say(told)
            round_all(rounder, menu, jobs=self.jobs, progress=self._progress(ROUNDING, told))

    def _ratios(self, formats: Formats, uniform: Formats, rounding: str, rows: slice) -> dict[Memory, float]:
        """See `against`; empty where half of the rows leave a doubt."""
        found: dict[Memory, float] = {}
        ours, theirs = (
            self._measured({m: self._variant(plan, m) for m in self.table.memories}, rounder, rows, COMPARING)
            for plan, rounder in ((formats, self.rounder), (uniform, self.exporter(rounding)))
        )
        for memory in self.table.memories:
            if rows != ALL and not _clearly_less(ours[memory], theirs[memory]):
                return {}
            mine, its = ours[memory].kl_nats, theirs[memory].kl_nats
            found[memory] = 1.0 if max(mine, its) < NOTHING_NATS else mine / its if its else math.inf
        return found

    def _variant(self, formats: Formats, memory: Memory) -> Variant:
        conditions = self.table.conditions
        # uniform models may have blocks that the engine garbles under option 2, and are run without it then
        option = 0 if garbled(formats) else conditions.dynamic_option
        return Variant(formats, memory, Int8Activations("prefill", option, without_half(conditions.arithmetic)))

    def _measured(
        self, variants: Mapping[str, Variant], rounder: Rounder, rows: slice, stage: str, *, exact: bool = False
    ) -> dict[str, TokenStats]:
        """Measure whole models, all in one sweep since they share weights, on what is not known of the rows."""
        if not variants:
            return {}
        if not exact:
            first = next(iter(variants.values())).formats
            suffice = self.halves.suffice(self.rounder.loaded, self.table, first, self.kept)
            variants = {label: replace(variant, half=suffice) for label, variant in variants.items()}
        model = rounder.loaded.card.sha256, rounder.rounding
        halves = [half for half in ((EVEN, ODD) if rows == ALL else (rows,)) if len(self.heldout[half])]
        of = {label: (*model, *_computed(variant)) for label, variant in variants.items()}
        missing = [half for half in halves if any((key, half.start) not in self.known for key in of.values())]
        if missing:
            new = {
                label: variant
                for label, variant in variants.items()
                if any((of[label], half.start) not in self.known for half in missing)
            }
            wanted = ALL if len(missing) > 1 else missing[0]
            self.round([variant.formats for variant in new.values()], rounder)
            found = variant_losses(
                rounder.loaded,
                torch.from_numpy(self.heldout[wanted]),
                new,
                rounder=rounder,
                progress=self._progress(stage),
                **self._shared(wanted),
            )
            for label, stats in found.items():
                parts = stats.rows(len(self.heldout), missing) if wanted == ALL else [stats]
                self.known.update({(of[label], half.start): part for half, part in zip(missing, parts, strict=True)})
        return {label: join([self.known[key, half.start] for half in halves]) for label, key in of.items()}

    def _shared(self, rows: slice) -> _Shared:
        """What all measurements of whole models have in common."""
        kept = None if self.kept is None else self.kept.take(rows)
        # the reference was computed row by row
        batch_size = _ROWS_TOGETHER if kept is None else 1
        return {"reference": kept, "batch_size": batch_size, "engine_embedding": True}

    def _progress(self, stage: str, told: str = "") -> Progress | None:
        return None if self.visit is None else self.visit(stage, told)


class _Shared(TypedDict):
    reference: KeptLogits | None
    batch_size: int
    engine_embedding: bool


_ROWS_TOGETHER = 4


def _computed(variant: Variant) -> tuple[object, ...]:
    """What a variant's losses depend on: contexts that share them may have other int8 activations."""
    activations = variant.activations if applies(variant.memory, variant.formats) else None
    return variant.memory, variant.half, activations, tuple(sorted(variant.formats.items()))


def _clearly_less(ours: TokenStats, theirs: TokenStats) -> bool:
    """Whether one model loses less than another on the same tokens, beyond doubt."""
    more = theirs.kl - ours.kl
    return float(more.mean()) > _DOUBT_STDERRS * float(more.std()) / math.sqrt(len(more))


def _weights(model: ModelCard) -> int:
    return sum(spec.weights for spec in model.tensors)
