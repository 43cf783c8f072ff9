"""What is planned: tensors of a model and the groups that must share one format."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from qplan.formats import QuantFormat

_EXPERT_OP = re.compile(r"^/expert/\d+_(\d+)/")
"""MNN's name of an expert's op: layer, then expert."""


def short_name(tensor: str) -> str:
    """``0.mlp.down_proj`` for a tensor of layer 0: the form that patterns accept."""
    return tensor.removeprefix("model.").removeprefix("layers.")


class Role(StrEnum):
    """What a tensor does; rules of the planner speak of roles."""

    ATTENTION = "attention"
    MLP = "mlp"
    ROUTER = "router"
    """Chooses the experts of a token: rounding it changes which weights a token meets, not how exact they are."""
    EXPERT = "expert"
    HEAD = "head"
    """The matrix that makes the logits; also the embedding where the two are tied."""
    EMBEDDING = "embedding"
    """The matrix that tokens are looked up in, where it is not the head's: a file of its own, read row by row."""


@dataclass(frozen=True)
class TensorSpec:
    """One matrix ``[out_features, in_features]`` and its names in Hugging Face and in MNN.

    A linear's weight, or an untied embedding ``[vocabulary, hidden]``, which is no op of the graph.
    """

    name: str
    """Module path in the Hugging Face model, e.g. ``model.layers.0.self_attn.q_proj``."""
    op_name: str
    """Op name in the MNN graph, e.g. ``/layers.0/self_attn/q_proj/Linear``; empty for an embedding."""
    layer: int | None
    """Decoder layer, counted from 0; None for the head and the embedding."""
    kind: str
    """Last part of the module path, e.g. ``q_proj``, ``lm_head``."""
    role: Role
    out_features: int
    in_features: int
    bias: bool
    tied: bool = False
    """Whether this is a head whose matrix is also the input embedding: one unit with two uses."""

    @property
    def expert(self) -> int | None:
        """Number of the expert that the tensor belongs to, counted from 0 in its layer; None outside experts."""
        match = _EXPERT_OP.match(self.op_name)
        return None if match is None else int(match[1])

    @property
    def weights(self) -> int:
        """Number of weights, without the bias."""
        return self.out_features * self.in_features

    @property
    def is_embedding(self) -> bool:
        """Whether tokens are looked up in it, and nothing else is done with it."""
        return self.role is Role.EMBEDDING

    def bytes_in(self, fmt: QuantFormat) -> int:
        """Bytes of this tensor's record in ``llm.mnn.weight``, or of an embedding's own file, which has no header."""
        if self.is_embedding:
            return fmt.code_bytes(self.out_features, self.in_features) + fmt.alpha_bytes(
                self.out_features, self.in_features
            )
        return fmt.record_bytes(self.out_features, self.in_features, bias=self.bias)

    def resolve(self, fmt: QuantFormat) -> QuantFormat:
        """A format as this tensor can have it: with a block that divides its rows, see `QuantFormat.resolve`.

        Integers of an embedding's own file have zero points, and scales of 32 bits.
        """
        found = fmt.resolve(self.in_features)
        if not self.is_embedding or found.is_float:
            return found
        return replace(found, symmetric=False, scale_bits=32)

    def allows(self, fmt: QuantFormat) -> bool:
        """Whether the engine computes this tensor correctly in this format."""
        if self.is_embedding and self.resolve(fmt) != fmt:
            return False
        return fmt.divides(self.in_features) and (fmt.can_be_looked_up or not (self.tied or self.is_embedding))


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that share one format: a single tensor unless a target or the user joins some."""

    name: str
    members: tuple[TensorSpec, ...]

    @property
    def weights(self) -> int:
        """Number of weights of all members."""
        return sum(member.weights for member in self.members)

    @property
    def routes(self) -> bool:
        """Whether the group chooses experts and does nothing else."""
        return all(member.role is Role.ROUTER for member in self.members)

    @property
    def is_head(self) -> bool:
        """Whether the group makes the logits."""
        return any(member.role is Role.HEAD for member in self.members)

    @property
    def is_embedding(self) -> bool:
        """Whether the group is an untied embedding, or holds one."""
        return any(member.is_embedding for member in self.members)

    def bytes_in(self, fmt: QuantFormat) -> int:
        """Bytes of the members' records in the files."""
        return sum(member.bytes_in(fmt) for member in self.members)
