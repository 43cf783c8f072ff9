"""What later stages need to know about a model, without loading it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from qplan.formats import FP16, QuantFormat
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
    """Every linear weight, in order of execution, the head last."""
    embedding_weights: int
    """Weights of an untied input embedding (bfloat16 as MNN exports it); 0 if tied."""
    norm_weights: int
    """Weights of the norms; MNN stores each as fp32 gamma and beta."""
    embedding: TensorSpec | None = None
    """The untied input embedding; None if it is tied, and in runs of versions that did not plan it."""

    @property
    def planned(self) -> tuple[TensorSpec, ...]:
        """Everything that has a format of its own, in order of execution: an untied embedding, and all linears."""
        return self.tensors if self.embedding is None else (self.embedding, *self.tensors)

    def tensor(self, name: str) -> TensorSpec:
        """Look a tensor up by its Hugging Face name.

        Raises:
            KeyError: no such tensor.
        """
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.planned}

    def embedding_formats(self, formats: Iterable[QuantFormat]) -> tuple[QuantFormat, ...]:
        """Formats that an untied embedding is measured in: 16 bits, and those of some that it may have.

        None if the model has no such embedding.
        """
        spec = self.embedding
        if spec is None:
            return ()
        own = (spec.resolve(fmt) for fmt in formats)
        return tuple(dict.fromkeys((FP16, *(fmt for fmt in own if spec.allows(fmt) and fmt.allows_block_activations))))

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back; without the key of an embedding that is None: hashes stay."""
        return {name: value for name, value in asdict(self).items() if name != "embedding" or value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelCard:
        """Read what `to_json` wrote."""
        tensors, embedding = tuple(map(_spec, value["tensors"])), value.get("embedding")
        found = None if embedding is None else _spec(embedding)
        return cls(**(dict(value) | {"tensors": tensors, "embedding": found}))


def _spec(value: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(**(dict(value) | {"role": Role(value["role"])}))
