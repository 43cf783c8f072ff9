"""A device profile: this machine's times for every shape and format of ops, measured on whole models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qplan.artifact import body_of, is_there, read_json, write_json
from qplan.card import ModelCard
from qplan.cost.target import Target, find_target
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.run.decode import decode_artifact
from qplan.tensors import TensorSpec

KIND, SCHEMA = "qplan-device", 1

_REMEDY = "make it again with 'qplan profile'"


@dataclass(frozen=True)
class OpTime:
    """Time of all tensors of one shape in one format, beyond their time in the base format."""

    out_features: int
    in_features: int
    format: str
    tensors: int
    """How many tensors of the model have this shape."""
    prefill_ms: float
    """For all of them together; negative where the format is faster than the base."""
    decode_ms: float


@dataclass(frozen=True)
class TimedModel:
    """Times of one whole model; the times of ops are derived from those of all models."""

    label: str
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True)
class DeviceProfile:
    """Times of one model's ops on one machine."""

    machine: str
    engine: str
    """Version of MNN."""
    target: str
    memory: str
    threads: int
    prompt_tokens: int
    """Length of the prefill that was timed."""
    model_sha256: str
    base: str
    """Format of the uniform model that the others are compared with."""
    base_prefill_ms: float
    base_decode_ms: float
    """Per token."""
    ops: tuple[OpTime, ...]
    models: tuple[TimedModel, ...] = ()
    """The whole models that were timed."""

    def prefill_ms(self, spec: TensorSpec, fmt: QuantFormat) -> float:
        """Time of a tensor in a prefill, beyond the base format's.

        Raises:
            InputError: a shape or format that was not profiled.
        """
        if spec.is_embedding:
            return 0.0
        found = self._find(spec, fmt)
        return found.prefill_ms / found.tensors

    def decode_ms(self, spec: TensorSpec, fmt: QuantFormat) -> float:
        """Time of a tensor per decoded token, beyond the base format's.

        Raises:
            InputError: a shape or format that was not profiled.
        """
        if spec.is_embedding:
            return 0.0
        found = self._find(spec, fmt)
        return found.decode_ms / found.tensors

    def predict(self, card: ModelCard, formats: Mapping[str, QuantFormat]) -> tuple[float, float]:
        """Milliseconds of a prefill and of a decoded token with one format per tensor."""
        prefill = sum(self.prefill_ms(spec, formats[spec.name]) for spec in card.tensors)
        decode = sum(self.decode_ms(spec, formats[spec.name]) for spec in card.tensors)
        return self.base_prefill_ms + prefill, self.base_decode_ms + decode

    def check_model(self, card: ModelCard, memory: str) -> None:
        """Refuse a plan that this profile says nothing about.

        Raises:
            InputError: another model or memory setting; says which of the two.
        """
        found = None
        if self.model_sha256 != card.sha256:
            found = f"of another model than {card.source}"
        elif self.memory != memory:
            found = f"of memory {self.memory}, not {memory}"
        if found is not None:
            msg = f"the device profile is {found}; run 'qplan profile' for this run"
            raise InputError(msg)

    def _find(self, spec: TensorSpec, fmt: QuantFormat) -> OpTime:
        timed = self._target.timed_as(fmt.resolve(spec.in_features)).name
        shape = (spec.out_features, spec.in_features)
        for op in self.ops:
            if (op.out_features, op.in_features) == shape and op.format == timed:
                return op
        msg = f"{spec.name}: the device profile has no {timed} of shape {list(shape)}; run 'qplan profile' again"
        raise InputError(msg)

    @property
    def _target(self) -> Target:
        return find_target(self.target)

    def write(self, path: Path) -> None:
        """Write ``device.json`` atomically."""
        write_json(path, KIND, SCHEMA, {"model": self.model_sha256}, asdict(self))

    @classmethod
    def read(cls, path: Path) -> DeviceProfile:
        """Read ``device.json``.

        Raises:
            InputError: there is none, or it is no profile: a field is missing, unknown or of another type.
            StaleArtifactError: written by a newer qplan.
        """
        if not is_there(path):
            msg = f"{path} does not exist: limits in milliseconds need this machine's times; run 'qplan profile' first"
            raise InputError(msg)
        return decode_artifact(cls, body_of(read_json(path, KIND, SCHEMA, remedy=_REMEDY)), path, _REMEDY)
