"""One batch through a quantized model, a layer at a time: what it loses, and the gradients of that.

On the way back every layer computes again, with a graph, from what it was given on the way there: no more than one
layer's graph is in memory, and what lies between layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qplan.model.layerwise import hidden_of, run_layer
from qplan.model.load import LoadedModel
from qplan.sensitivity.joint import Variant, formats_of_layer, rows_together
from qplan.sensitivity.metrics import TokenStats, compare, join, reference_of
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats


@dataclass(frozen=True)
class Batch:
    """Some rows of tokens, and what the float model makes of them."""

    tokens: Tensor
    """int64 ``[rows, seq_len]``."""
    exact: Sequence[Any]
    """What the last layer returned of each row, in the float model."""


@dataclass(frozen=True)
class LossyModel(ABC):
    """A model that computes with rounded numbers."""

    loaded: LoadedModel

    @abstractmethod
    def quantized(self, index: int) -> AbstractContextManager[None]:
        """Make one layer compute so; their number stands for the head."""

    def exact(self, tokens: Tensor) -> list[Any]:
        """What the last layer of the float model returns of each row of ``tokens [rows, seq_len]``."""
        found = []
        with torch.no_grad():
            for row in tokens.split(1):
                given: Any = None
                for index in range(len(self.loaded.layers)):
                    given = run_layer(self.loaded, index, row, given)
                found.append(given)
        return found

    def stats(self, batch: Batch) -> TokenStats:
        """What the model loses on a batch."""
        with torch.no_grad():
            last = self._there(batch.tokens)[-1]
            parts = []
            for rows in self._head_rows(batch.tokens):
                exact = self._exact_logits(batch, rows)
                reference = reference_of(exact, batch.tokens[rows])
                with self.quantized(len(self.loaded.layers)):
                    logits = run_layer(self.loaded, len(self.loaded.layers), batch.tokens[rows], _rows(last, rows))
                parts.append(compare(reference, logits))
        return join(parts)

    def add_gradients(self, batch: Batch) -> float:
        """Add the gradients of the mean KL per token to all that is trained.

        Returns:
            the mean KL per token, in nats.
        """
        count = len(self.loaded.layers)
        with torch.no_grad():
            given = self._there(batch.tokens)
        loss, slopes = 0.0, []
        for rows in self._head_rows(batch.tokens):
            with torch.no_grad():
                exact = self._exact_logits(batch, rows)
                expected = torch.log_softmax(exact.float(), -1)
            leaf, logits = self._again(count, batch.tokens[rows], _rows(given[-1], rows))
            with torch.no_grad():
                found = torch.log_softmax(logits.detach().float(), -1)
                share = expected.exp()
                loss += float((share * (expected - found)).sum()) / batch.tokens.numel()
                slope = found.exp_().sub_(share).div_(batch.tokens.numel())
            torch.autograd.backward(logits, slope.to(logits.dtype))
            slopes.append(_slope(leaf))
        slope = torch.cat(slopes)
        for index in range(count - 1, -1, -1):
            leaf, output = self._again(index, batch.tokens, given[index])
            if not output.requires_grad:  # nothing is trained up to here
                break
            torch.autograd.backward(output, slope)
            if index:
                slope = _slope(leaf)
        return loss

    def _there(self, tokens: Tensor) -> list[Any]:
        """What each layer is given, and the head."""
        found: list[Any] = [None]
        for index in range(len(self.loaded.layers)):
            with self.quantized(index):
                found.append(run_layer(self.loaded, index, tokens, found[-1]))
        return found

    def _again(self, index: int, tokens: Tensor, given: Any) -> tuple[Tensor | None, Tensor]:  # noqa: ANN401
        """A layer with its graph: the leaf where it begins, None for the first layer, and its output."""
        leaf, fresh = None, None
        if given is not None:
            leaf = hidden_of(given).detach().requires_grad_()
            fresh = leaf if isinstance(given, Tensor) else (leaf, *given[1:])
        with torch.enable_grad(), self.quantized(index):
            return leaf, hidden_of(run_layer(self.loaded, index, tokens, fresh))

    def _exact_logits(self, batch: Batch, rows: slice) -> Tensor:
        """The float model's logits of some rows, one after the other."""
        pairs = zip(batch.tokens[rows].split(1), batch.exact[rows], strict=True)
        return torch.cat([run_layer(self.loaded, len(self.loaded.layers), tokens, given) for tokens, given in pairs])

    def _head_rows(self, tokens: Tensor) -> list[slice]:
        """Rows whose logits are in memory at a time."""
        step = rows_together(self.loaded, tokens, len(tokens))
        return [slice(start, min(start + step, len(tokens))) for start in range(0, len(tokens), step)]


@dataclass(frozen=True)
class QuantizedModel(LossyModel):
    """A model as it will ship."""

    plan: Variant
    weights: StoredWeights

    def quantized(self, index: int) -> AbstractContextManager[None]:
        """See `LossyModel.quantized`."""
        return apply_formats(
            self.loaded,
            formats_of_layer(self.loaded, self.plan.formats, index),
            self.plan.memory,
            self.plan.activations,
            stored=self.weights,
            engine_embedding=index == 0,
        )


def _rows(value: Any, rows: slice) -> Any:  # noqa: ANN401
    """Some rows of what a layer returned."""
    if isinstance(value, Tensor):
        return value[rows]
    return tuple(part[rows] if isinstance(part, Tensor) and part.dim() > 1 else part for part in value)


def _slope(leaf: Tensor | None) -> Tensor:
    if leaf is None or leaf.grad is None:
        msg = "a layer's output does not depend on its input"
        raise RuntimeError(msg)
    return leaf.grad
