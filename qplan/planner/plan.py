"""The plan: one format per tensor, with the promise it makes about bytes and loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qplan.artifact import read_json, write_json
from qplan.formats import QuantFormat

KIND, SCHEMA = "qplan-plan", 1


@dataclass(frozen=True)
class FileBytes:
    """Bytes of the files that ship."""

    weight: int
    """``llm.mnn.weight``."""
    embedding: int
    """``embeddings_bf16.bin``; 0 where the embedding is tied to the head."""
    graph: int
    """``llm.mnn``."""

    @property
    def total(self) -> int:
        """All three."""
        return self.weight + self.embedding + self.graph


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor's place in the plan."""

    name: str
    """Hugging Face name."""
    op_name: str
    """Op name in the MNN graph."""
    layer: int | None
    kind: str
    weights: int
    format: QuantFormat
    bytes: int
    """Bytes of its record in the weight file."""
    loss_nats: float
    """Measured loss of this format with everything else FP32."""


@dataclass(frozen=True)
class SolverReport:
    """What the solver proved."""

    status: str
    """``optimal``, or why not."""
    objective_nats: float
    """Sum of single-tensor losses of the plan."""
    bound_nats: float
    """No plan within the constraints has a smaller sum than this."""
    gap: float
    """(objective - bound) / objective; 0 is proved optimal."""
    choices: int
    """Binary variables of the problem."""
    seconds: float


@dataclass(frozen=True)
class LogitsRule:
    """The rule that keeps logits-related tensors at higher precision, and what it costs."""

    min_bits: int
    """Widths below this were not allowed for the head and a tied embedding."""
    at_least_mean: bool
    """Whether the head also had to be at or above the size-weighted mean width of the other tensors."""
    price_nats: float
    """Predicted loss with the rule minus without it, at the same budget; 0 if the rule did not bind."""
    head_format_without: str
    """What the head would be without the rule."""


@dataclass(frozen=True)
class UniformPoint:
    """A uniform format for comparison: what a careful user would export."""

    name: str
    """e.g. ``int4`` (head at 8 bits)."""
    total_bytes: int
    predicted_nats: float | None
    """Sum of single losses, None where a format was not measured."""


@dataclass(frozen=True)
class Plan:
    """One format for every tensor, under a budget."""

    model: str
    model_sha256: str
    sensitivity_sha256: str
    memory: str
    """MNN ``memory`` setting that the losses were measured for."""
    budget: str
    """As the user wrote it."""
    budget_bytes: int
    """What it means for the files that ship."""
    tensors: tuple[PlannedTensor, ...]
    predicted_nats: float
    """Predicted joint loss: the sum of single losses."""
    files: FileBytes
    solver: SolverReport
    logits: LogitsRule
    uniform: tuple[UniformPoint, ...]
    notes: tuple[str, ...]

    @property
    def formats(self) -> dict[str, QuantFormat]:
        """Format by Hugging Face name."""
        return {tensor.name: tensor.format for tensor in self.tensors}

    @property
    def mean_bits(self) -> float:
        """Size-weighted mean width, without scales."""
        return sum(t.format.bits * t.weights for t in self.tensors) / sum(t.weights for t in self.tensors)

    def write(self, path: Path) -> None:
        """Write ``plan.json`` atomically."""
        body = asdict(self)
        body["tensors"] = [asdict(t) | {"format": t.format.name} for t in self.tensors]
        inputs = {"model": self.model_sha256, "sensitivity": self.sensitivity_sha256}
        write_json(path, KIND, SCHEMA, inputs, body)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read ``plan.json``.

        Raises:
            InputError: not a plan.
            StaleArtifactError: written by a newer qplan.
        """
        return cls._from_json(read_json(path, KIND, SCHEMA))

    @classmethod
    def _from_json(cls, value: Mapping[str, Any]) -> Plan:
        body = {k: v for k, v in value.items() if k not in ("kind", "schema", "inputs", "versions")}
        body["tensors"] = tuple(
            PlannedTensor(**(t | {"format": QuantFormat.parse(t["format"])})) for t in value["tensors"]
        )
        body["files"] = FileBytes(**value["files"])
        body["solver"] = SolverReport(**value["solver"])
        body["logits"] = LogitsRule(**value["logits"])
        body["uniform"] = tuple(UniformPoint(**u) for u in value["uniform"])
        body["notes"] = tuple(value["notes"])
        return cls(**body)
