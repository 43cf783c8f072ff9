"""Bytes of the files that ship: weights and embedding exactly, the graph exactly or by a fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qplan.card import ModelCard
from qplan.errors import QplanError
from qplan.formats import QuantFormat
from qplan.tensors import TensorSpec

_NORM_BYTES = 8
"""MNN stores gamma and beta of every norm weight as fp32, RMSNorm included."""
_EMBEDDING_BYTES = 2
"""``embeddings_bf16.bin``."""
_GRAPH_BASE, _GRAPH_LAYER, _GRAPH_LATER_LAYER = 7_128, 15_712, 15_936
"""Bytes, fitted to llmexport 0.0.5: exact for Qwen2 with 2, 8 and 12 layers, within 0.2 % for Llama with 4 layers;
names are longer from layer 10 on. The same for every format and width of the model."""
_GRAPH_EXPERT = 4_896
"""Bytes of an expert's own graph; exact for Qwen3-MoE with 4 and 16 experts in each of two layers."""


@dataclass(frozen=True)
class FileBytes:
    """Bytes of the files that ship."""

    weight: int
    """``llm.mnn.weight``."""
    embedding: int
    """``embeddings_bf16.bin``, or the file of integers in its place; 0 where the embedding is tied to the head."""
    graph: int
    """``llm.mnn``."""

    @property
    def total(self) -> int:
        """All three."""
        return self.weight + self.embedding + self.graph


@dataclass(frozen=True)
class FixedBytes:
    """Bytes that ship whatever the plan."""

    weight_other: int
    """Bytes of ``llm.mnn.weight`` besides the records of linears: norms, constants."""
    embedding: int
    """``embeddings_bf16.bin``; 0 where the embedding is tied to the head, or planned."""
    graph: int
    """``llm.mnn``."""
    exact: bool
    """Whether all three were read from an exported model; False for an estimate."""

    @property
    def total(self) -> int:
        """All three."""
        return self.weight_other + self.embedding + self.graph


def estimate_fixed(card: ModelCard) -> FixedBytes:
    """Predict the fixed bytes without an export.

    Weight and embedding files are exact for Qwen2 and Llama; the graph is a fit by layers, within 1 % for these.
    """
    layers = 1 + max((spec.layer for spec in card.tensors if spec.layer is not None), default=-1)
    graph = _GRAPH_BASE + _GRAPH_LAYER * min(layers, 10) + _GRAPH_LATER_LAYER * max(layers - 10, 0)
    graph += _GRAPH_EXPERT * len({(spec.layer, spec.expert) for spec in card.tensors if spec.expert is not None})
    embedding = fixed_embedding(card, _EMBEDDING_BYTES * card.embedding_weights)
    return FixedBytes(_NORM_BYTES * card.norm_weights, embedding, graph, exact=False)


def fixed_embedding(card: ModelCard, exported_bytes: int) -> int:
    """Bytes of an exported embedding file that ship whatever the plan: none where the plan decides its format."""
    return exported_bytes if card.embedding is None else 0


def record_bytes(spec: TensorSpec, fmt: QuantFormat) -> int:
    """Bytes of one tensor's record in the weight file, or of an embedding's own file.

    Raises:
        QplanError: the format's block does not divide the row: the record would be another format's.
    """
    if not fmt.divides(spec.in_features):
        msg = f"{spec.name}: {fmt} does not divide rows of {spec.in_features} weights; resolve the format first"
        raise QplanError(msg)
    return spec.bytes_in(fmt)


def file_bytes(card: ModelCard, formats: Mapping[str, QuantFormat], fixed: FixedBytes) -> FileBytes:
    """Bytes of a model's files with one format per tensor.

    Args:
        card: the model.
        formats: format by Hugging Face name, one for every tensor that is planned.
        fixed: bytes that ship whatever the plan.

    Raises:
        QplanError: a tensor without format, or a format that does not divide its rows.
    """
    missing = [spec.name for spec in card.planned if spec.name not in formats]
    if missing:
        msg = f"no format for {missing[0]} ({len(missing)} tensors lack one)"
        raise QplanError(msg)
    records = sum(record_bytes(spec, formats[spec.name]) for spec in card.tensors)
    own = 0 if card.embedding is None else record_bytes(card.embedding, formats[card.embedding.name])
    return FileBytes(records + fixed.weight_other, fixed.embedding + own, fixed.graph)


def bits_per_weight(files: FileBytes, card: ModelCard) -> float:
    """Bits of weight and embedding files per model parameter: what ``4.5bpw`` means.

    All stored numbers count, scales, zero points, biases and norms included; the graph does not. A tied matrix
    counts once in both. Uniform fp16 is therefore slightly above 16.
    """
    return 8 * (files.weight + files.embedding) / card.parameters
