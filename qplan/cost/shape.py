"""The shape of a model as far as work and memory depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from qplan.card import ModelCard
from qplan.formats import QuantFormat
from qplan.tensors import Role, TensorSpec

_OWN_INPUT = ("o_proj", "down_proj", "out_proj", "dense", "w2", "c_proj", "dense_4h_to_h", "fc2")
"""Kinds of linears that read what no other linear reads."""


@dataclass(frozen=True)
class Input:
    """Linears that read the same numbers."""

    layer: int | None
    """None for the head."""
    width: int
    """Numbers per token."""
    readers: tuple[TensorSpec, ...]
    share: float
    """Share of the tokens that reach them: less than 1 for experts."""

    @property
    def outputs(self) -> int:
        """Output features of all readers."""
        return sum(spec.out_features for spec in self.readers)

    @property
    def weights(self) -> int:
        """Weights of all readers."""
        return self.width * self.outputs


@dataclass(frozen=True)
class Shape:
    """A model's shape."""

    card: ModelCard
    inputs: tuple[Input, ...]
    """Of the layers, in order, and of the head, the last."""
    checkpoint_bytes: int

    @classmethod
    def of(cls, card: ModelCard, checkpoint_bytes: int, share: float = 1.0) -> Self:
        """The shape of a model, of whose experts a token meets a ``share``."""
        groups: dict[tuple[int | None, str, int, str], list[TensorSpec]] = {}
        for spec in card.tensors:
            alone = spec.kind if spec.kind in _OWN_INPUT or spec.role is Role.HEAD else ""
            parent = spec.name.rpartition(".")[0]
            groups.setdefault((spec.layer, parent, spec.in_features, alone), []).append(spec)
        found = tuple(
            Input(layer, width, tuple(readers), share if readers[0].role is Role.EXPERT else 1.0)
            for (layer, _, width, _), readers in groups.items()
        )
        return cls(card, found, checkpoint_bytes)

    @property
    def head(self) -> Input:
        """What the head reads."""
        return self.inputs[-1]

    @property
    def hidden(self) -> int:
        """Numbers per token between layers."""
        return self.head.width

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.card.tensors[-1].tied

    @cached_property
    def layers(self) -> tuple[tuple[Input, ...], ...]:
        """Inputs by layer."""
        found: dict[int, list[Input]] = {}
        for given in self.inputs[:-1]:
            found.setdefault(given.layer or 0, []).append(given)
        return tuple(map(tuple, found.values()))

    @property
    def parameters(self) -> int:
        """Numbers of the model, which a tied head counts once."""
        return self.card.parameters

    def kinds(self, spec: TensorSpec, formats: Sequence[QuantFormat]) -> list[list[QuantFormat]]:
        """Integer formats that a tensor may have; those that differ in their width alone together."""
        found: dict[tuple[int, bool], list[QuantFormat]] = {}
        for fmt in dict.fromkeys(fmt.resolve(spec.in_features) for fmt in formats if not fmt.is_float):
            if spec.allows(fmt):
                found.setdefault((fmt.block_size(spec.in_features), fmt.symmetric), []).append(fmt)
        return list(found.values())
