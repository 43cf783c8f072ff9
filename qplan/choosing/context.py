"""A planning context: the losses and rules that a plan is made from, and the whole models that it is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.cost.file_bytes import FixedBytes
from qplan.formats import QuantFormat
from qplan.planner.rules import Rules
from qplan.planner.uniform import largest_uniform
from qplan.quantize import Int8Activations
from qplan.quantize.rounder import Rounder
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.metrics import TokenStats
from qplan.settings import Memory, Say

Formats = Mapping[str, QuantFormat]


@dataclass(frozen=True)
class PlanningContext:
    """What is the same for every plan that is tried."""

    table: SensitivityTable
    """Losses of single tensors."""
    fixed: FixedBytes
    """Bytes that ship whatever the plan."""
    rounder: Rounder
    """Chooses a plan's integers."""
    nearest: Rounder
    """Of uniform models: what MNN's exporter would build of the model as the user gave it."""
    heldout: NDArray[np.int64]
    """int64 ``[rows, seq_len]`` that whole models are measured on."""
    say: Say
    """Told what is being done."""
    rules: Rules = field(default_factory=Rules)
    """What the user wants besides budgets and limits."""

    def uniform(self, limit_bytes: int) -> tuple[str, dict[str, QuantFormat]] | None:
        """The widest uniform export within a limit, with its name; None if none is."""
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
        """Measure whole models in torch, with the activations that the table's losses have.

        Args:
            plans: formats by tensor name, by label.
            memory: the table's goal by default.
            rounder: `rounder` by default.
            rows: int64 ``[rows, seq_len]``; `heldout` by default.
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
        """A plan's joint loss over that of uniform as MNN's exporter rounds it, by memory setting."""
        ratios: dict[Memory, float] = {}
        for memory in self.table.memories:
            ours = self.whole_nats(formats, memory)
            theirs = self.whole_nats(uniform, memory, rounder=self.nearest)
            ratios[memory] = ours / theirs if theirs else float(ours > 0)
        return ratios
