"""The best plans at all sizes, as ``qplan frontier`` and reports store them."""

from __future__ import annotations

from dataclasses import dataclass

from qplan.formats import QuantFormat


@dataclass(frozen=True)
class FrontierPoint:
    """The best plan of one size."""

    total_bytes: int
    """All files of the plan, not larger than the budget it was solved for."""
    bpw: float
    """Bits of weight and embedding files per parameter."""
    predicted_nats: float
    """Sum of single-tensor losses."""
    joint_nats: float
    """Predicted loss of the whole model, see `SensitivityTable.predict_joint`."""
    gap: float
    """What the solver left unproved, relative; 0 is optimal."""
    formats: dict[str, QuantFormat]
    """By Hugging Face name."""
    knee: bool
    """Whether the curve of log loss over bytes bends most here: below it bytes buy much, above it little."""


@dataclass(frozen=True)
class UniformModel:
    """One format for all tensors, the head at 8 bits, with the same rounding as the plans."""

    name: str
    """e.g. ``int4``."""
    total_bytes: int
    joint_nats: float
    """Predicted loss of the whole model."""


@dataclass(frozen=True)
class Frontier:
    """A sweep of budgets."""

    points: tuple[FrontierPoint, ...]
    """From the smallest plan to the least loss, bytes ascending, no plan twice."""
    uniform: tuple[UniformModel, ...]
    """Every uniform format whose losses are known, bytes ascending."""
    seconds: float
    """Wall time of all solves."""


@dataclass(frozen=True)
class MeasuredModel:
    """A built model on the engine."""

    name: str
    is_plan: bool
    """A plan; else a uniform model as MNN's exporter rounds it."""
    total_bytes: int
    kl_nats: float
