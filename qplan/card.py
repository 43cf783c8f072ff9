"""What later stages need to know about a model, without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from qplan.tensors import Role, TensorSpec


@dataclass(frozen=True)
class ModelCard:
    """A causal language model as the planner sees it."""

    source: str
    """Local folder or hub id, as the user gave it."""
    sha256: str
    """Hash of the configuration and the weight files: identifies the model whatever its path."""
    architecture: str
    """Hugging Face class name, e.g. ``Qwen2ForCausalLM``."""
    model_type: str
    """Hugging Face model type, e.g. ``qwen2``."""
    parameters: int
    vocabulary: int
    context: int
    """Longest sequence in tokens."""
    tensors: tuple[TensorSpec, ...]
    """Every linear weight that is planned, in order of execution, the head last."""
    embedding_weights: int
    """Weights of an untied input embedding (stored as bfloat16 by MNN); 0 if tied."""
    norm_weights: int
    """Weights of the norms; MNN stores each as fp32 gamma and beta."""

    def tensor(self, name: str) -> TensorSpec:
        """Look a tensor up by its Hugging Face name.

        Raises:
            KeyError: no such tensor.
        """
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.tensors}

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelCard:
        """Read what `to_json` wrote."""
        tensors = tuple(TensorSpec(**(spec | {"role": Role(spec["role"])})) for spec in value["tensors"])
        return cls(**(dict(value) | {"tensors": tensors}))
