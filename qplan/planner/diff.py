"""Which formats differ between two plans of one model, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.run.plan import Plan


@dataclass(frozen=True)
class TensorChange:
    """One tensor whose format differs."""

    name: str
    """Hugging Face name."""
    before: QuantFormat
    after: QuantFormat
    bytes: int
    """Bytes after minus before."""
    loss_nats: float
    """Single-tensor loss after minus before."""


@dataclass(frozen=True)
class PlanDiff:
    """The differences between two plans."""

    changes: tuple[TensorChange, ...]
    """Tensors whose format differs, in order of execution."""
    total_bytes: int
    """Bytes of all files, after minus before."""
    predicted_nats: float
    """Predicted joint loss after minus before."""
    comparable: bool
    """Whether both losses come from the same measurements; if not, loss differences mix two tables."""


def diff(before: Plan, after: Plan) -> PlanDiff:
    """Compare two plans.

    Raises:
        InputError: the plans are for models with different tensors.
    """
    old = {tensor.name: tensor for tensor in before.tensors}
    new = {tensor.name: tensor for tensor in after.tensors}
    if odd := sorted(old.keys() ^ new.keys()):
        msg = (
            f"the plans are for different models: {odd[0]} is in only one of them ({len(odd)} such); "
            "compare plans of one model"
        )
        raise InputError(msg)
    changes = tuple(
        TensorChange(
            tensor.name,
            old[tensor.name].format,
            tensor.format,
            tensor.bytes - old[tensor.name].bytes,
            tensor.loss_nats - old[tensor.name].loss_nats,
        )
        for tensor in after.tensors
        if tensor.format != old[tensor.name].format
    )
    return PlanDiff(
        changes,
        after.files.total - before.files.total,
        after.predicted_nats - before.predicted_nats,
        before.sensitivity_sha256 == after.sensitivity_sha256,
    )
