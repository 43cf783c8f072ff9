"""The planning context: the losses and rules that plans are made from, and measurements of whole models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.cost.file_bytes import FixedBytes
from qplan.formats import Formats, QuantFormat
from qplan.planner.rules import Rules
from qplan.planner.uniform import largest_uniform
from qplan.quantize import Int8Activations
from qplan.quantize.rounder import Rounder
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.metrics import TokenStats
from qplan.settings import Memory, Say


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
        rows: NDArray[np.int64] | None = None,
    ) -> dict[str, TokenStats]:
        """Measure whole models in torch, with the same int8 activations as the table's losses.

        Args:
            plans: formats by tensor name, by label.
            memory: memory setting; the table's goal by default.
            rounder: chooses the integers; the context's by default.
            rows: tokens, int64 ``[rows, seq_len]``; `heldout` by default.
        """
        rounder = rounder or self.rounder
        activations = Int8Activations("prefill", self.table.conditions.dynamic_option)
        tokens = torch.from_numpy(self.heldout if rows is None else rows)
        memory = memory or self.table.goal
        return joint_losses(rounder.loaded, tokens, plans, memory, activations, engine_embedding=True, rounder=rounder)

    def whole_nats(self, formats: Formats, memory: Memory | None = None, *, rounder: Rounder | None = None) -> float:
        """Mean KL per held-out token of a whole model, in nats."""
        return self.whole({"": formats}, memory, rounder=rounder)[""].kl_nats

    def against(self, formats: Formats, uniform: Formats) -> dict[Memory, float]:
        """Ratio of a plan's joint loss to that of a uniform export rounded to nearest, by memory setting."""
        ratios: dict[Memory, float] = {}
        for memory in self.table.memories:
            ours = self.whole_nats(formats, memory)
            theirs = self.whole_nats(uniform, memory, rounder=self.nearest)
            ratios[memory] = ours / theirs if theirs else float(ours > 0)
        return ratios
