"""What a model takes in the engine, and what is run of it where that is more than may be taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from qplan.card import ModelCard
from qplan.cost.free import held_memory
from qplan.cost.target import DEFAULT_TARGET, find_target
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.notes import Note, note
from qplan.settings import MEMORIES, Memory
from qplan.tensors import TensorSpec
from qplan.uniform import COMPARED, uniform_formats

_BASE_BYTES = 300_000_000
"""The engine without a model, its graph and its activations: 0.1 GB were measured with 64 tokens of Qwen2.5-7B."""

_COPIES_AT_LOAD = 1.4
"""Bytes a weight that loading a tensor of integers takes besides its place: measured with the head of Qwen2.5-7B."""

_FLOAT_BYTES = 4
_LOGITS_COPIES = 3


@dataclass(frozen=True)
class EngineMemory:
    """Predicts the peak memory of the engine's process, and holds it against a limit."""

    card: ModelCard
    tokens: int
    """Most tokens of a sequence."""
    limit_bytes: int
    """Most memory of all processes together."""
    free_bytes: int
    """What the engine's process may take of it."""

    @classmethod
    def beside_this_process(cls, card: ModelCard, tokens: int, limit_bytes: int) -> Self:
        """What is left beside this process as it is now, and the logits that it will hold."""
        own = held_memory() + _logits_bytes(card, tokens)
        return cls(card, tokens, limit_bytes, limit_bytes - own)

    def need(self, formats: Mapping[str, QuantFormat], memory: Memory, layers: int | None = None) -> int:
        """Peak bytes of the engine's process with a built model, or with its first layers and its head.

        Args:
            formats: by tensor name.
            memory: the engine's setting.
            layers: how many; None for all.
        """
        target, total, at_load = find_target(DEFAULT_TARGET), 0, 0
        for spec in first_tensors(self.card, layers):
            if spec.is_embedding and spec.name not in formats:
                continue
            fmt = formats[spec.name].resolve(spec.in_features)
            total += target.ram_bytes(spec, fmt, memory)
            if spec.is_embedding:
                continue
            floats = memory != "low" or fmt.is_float
            at_load = max(at_load, int(spec.weights * (_FLOAT_BYTES if floats else _COPIES_AT_LOAD)))
        return _BASE_BYTES + total + max(at_load, _logits_bytes(self.card, self.tokens))

    def settings(self, formats: Mapping[str, QuantFormat]) -> tuple[Memory, ...]:
        """The memory settings under which a whole model can be run."""
        return tuple(memory for memory in MEMORIES if self.need(formats, memory) <= self.free_bytes)

    def most_layers(self, formats: Mapping[str, QuantFormat]) -> int:
        """How many of the first layers can be run under the head with memory normal, in which logits are exact.

        Raises:
            InputError: not one.
        """
        layers = 1 + max((spec.layer for spec in self.card.tensors if spec.layer is not None), default=0)
        for count in range(layers, 0, -1):
            if self.need(formats, "normal", count) <= self.free_bytes:
                return count
        error = self._too_little("a layer and the head", self.need(formats, "normal", 1), "or use --no-build")
        raise error

    def check_runs(self, formats: Mapping[str, QuantFormat]) -> None:
        """Refuse a plan that cannot be run whole, under any setting.

        Raises:
            InputError: it can't.
        """
        if not self.settings(formats):
            remedy = "lower --budget, or use --no-build"
            least = min(self.need(formats, memory) for memory in MEMORIES)
            error = self._too_little("this plan", least, remedy)
            raise error

    def left_out(self, formats: Mapping[str, QuantFormat], *, unfolded: ModelCard) -> tuple[Note, ...]:
        """What is not run of a plan and of the uniform models that it is compared with, for a reader to know."""
        models = {name: uniform_formats(unfolded, bits) for name, bits in COMPARED.items()} | {"plan": formats}
        runs = {name: self.settings(found) for name, found in models.items()}
        missing = [f"{name} ({memory})" for name, ran in runs.items() for memory in MEMORIES if memory not in ran]
        if not missing:
            return ()
        layers = self.most_layers(formats)
        return (note("left-out-for-memory", settings=missing, limit_gb=self.limit_bytes / 1e9, layers=layers),)

    def _too_little(self, what: str, need: int, remedy: str) -> InputError:
        msg = (
            f"{what} takes about {need / 1e9:.1f} GB in the engine, and --max-memory {self.limit_bytes / 1e9:.1f}GB "
            f"leaves {max(self.free_bytes, 0) / 1e9:.1f} GB beside qplan itself; raise it, {remedy}"
        )
        return InputError(msg)


def first_tensors(card: ModelCard, layers: int | None) -> tuple[TensorSpec, ...]:
    """The tensors of the first layers, and those of none, as the head and an embedding; all tensors for None."""
    return tuple(spec for spec in card.planned if layers is None or spec.layer is None or spec.layer < layers)


def _logits_bytes(card: ModelCard, tokens: int) -> int:
    return _LOGITS_COPIES * _FLOAT_BYTES * tokens * card.vocabulary
