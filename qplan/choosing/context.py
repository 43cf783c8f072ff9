"""The planning context: the losses and rules that plans are made from, and measurements of whole models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.card import ModelCard
from qplan.cost.emit import COMPARING, ROUNDING
from qplan.cost.file_bytes import FixedBytes
from qplan.formats import Formats, QuantFormat
from qplan.planner.rules import Rules
from qplan.planner.uniform import largest_uniform
from qplan.quantize import Int8Activations
from qplan.quantize.round_all import pending, round_all
from qplan.quantize.rounder import Rounder
from qplan.run.safetensors_file import ALL
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import Variant, joint_losses, variant_losses
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.sensitivity.metrics import TokenStats
from qplan.settings import Memory, Progress, Say, Visit


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
    known: dict[object, float] = field(default_factory=dict)
    """Losses of whole models that were measured already; may be shared by several contexts."""
    jobs: int = 1
    """Tensors to round at a time."""
    visit: Visit | None = None
    """Called with the stage that something belongs to, where tensors are rounded or whole models measured."""

    @property
    def pass_tokens(self) -> int:
        """Tokens of a pass: those that the analysis ran forwards and backwards."""
        return self.table.conditions.samples * self.table.conditions.seq_len

    def uniform(self, limit_bytes: int) -> tuple[str, dict[str, QuantFormat]] | None:
        """The widest uniform export within a limit, with its name; None if none fits."""
        rules = self.rules
        return largest_uniform(
            self.table.model, rules.uniform_fixed or self.fixed, limit_bytes, rules.uniform_scale_bits
        )

    def whole(
        self,
        plans: Mapping[str, Formats],
        memory: Memory | None = None,
        *,
        rounder: Rounder | None = None,
        rows: slice = ALL,
        stage: str = COMPARING,
    ) -> dict[str, TokenStats]:
        """Measure whole models in torch, with the same int8 activations as the table's losses.

        Args:
            plans: formats by tensor name, by label.
            memory: memory setting; the table's goal by default.
            rounder: chooses the integers; the context's by default.
            rows: of `heldout`.
            stage: that this belongs to, see `qplan.cost.emit`.
        """
        rounder = rounder or self.rounder
        self.round(plans.values(), rounder)
        return joint_losses(
            rounder.loaded,
            torch.from_numpy(self.heldout[rows]),
            plans,
            memory or self.table.goal,
            self._activations,
            rounder=rounder,
            progress=self._progress(stage),
            **self._shared(rows),
        )

    def whole_nats(self, formats: Formats, memory: Memory | None = None, *, rounder: Rounder | None = None) -> float:
        """Mean KL per held-out token of a whole model, in nats."""
        memory = memory or self.table.goal
        return self._nats(formats, (memory,), rounder or self.rounder)[memory]

    def against(self, formats: Formats, uniform: Formats) -> dict[Memory, float]:
        """Ratio of a plan's joint loss to that of a uniform export rounded to nearest, by memory setting."""
        ours = self._nats(formats, self.table.memories, self.rounder)
        theirs = self._nats(uniform, self.table.memories, self.nearest)
        return {m: ours[m] / theirs[m] if theirs[m] else float(ours[m] > 0) for m in self.table.memories}

    def round(self, plans: Iterable[Formats], rounder: Rounder) -> None:
        """Choose the integers of plans, several tensors at a time, where the run does not hold them."""
        wanted: dict[str, dict[QuantFormat, None]] = {spec.name: {} for spec in self.table.model.tensors}
        for formats in plans:
            for name, fmt in formats.items():
                wanted[name][fmt] = None
        menu = {name: tuple(formats) for name, formats in wanted.items()}
        missing = pending(rounder, menu)
        if missing:
            share = sum(self.table.model.tensor(name).weights for name, _ in missing) / _weights(self.table.model)
            told = f"choosing integers: {len(missing)} tensors, {share:.0%} of all weights, {self.jobs} at a time"
            if self.visit is None:
                self.say(told)
            round_all(rounder, menu, jobs=self.jobs, progress=self._progress(ROUNDING, told))

    def _nats(self, formats: Formats, memories: Sequence[Memory], rounder: Rounder) -> dict[Memory, float]:
        """Mean KL per held-out token, by memory setting: of both at once, since they share weights."""
        of = (rounder.loaded.card.sha256, rounder.rounding, tuple(sorted(formats.items())))
        new: dict[str, Variant] = {
            m: Variant(formats, m, self._activations) for m in memories if (m, of) not in self.known
        }
        if new:
            self.round([formats], rounder)
            tokens = torch.from_numpy(self.heldout)
            found = variant_losses(
                rounder.loaded, tokens, new, rounder=rounder, progress=self._progress(COMPARING), **self._shared(ALL)
            )
            self.known.update({(memory, of): stats.kl_nats for memory, stats in found.items()})
        return {memory: self.known[memory, of] for memory in memories}

    def _shared(self, rows: slice) -> _Shared:
        """What all measurements of whole models have in common."""
        kept = None if self.kept is None else self.kept.take(rows)
        # the reference was computed row by row
        batch_size = _ROWS_TOGETHER if kept is None else 1
        return {"reference": kept, "batch_size": batch_size, "engine_embedding": True}

    def _progress(self, stage: str, told: str = "") -> Progress | None:
        return None if self.visit is None else self.visit(stage, told)

    @property
    def _activations(self) -> Int8Activations:
        return Int8Activations("prefill", self.table.conditions.dynamic_option)


class _Shared(TypedDict):
    reference: KeptLogits | None
    batch_size: int
    engine_embedding: bool


_ROWS_TOGETHER = 4


def _weights(model: ModelCard) -> int:
    return sum(spec.weights for spec in model.tensors)
