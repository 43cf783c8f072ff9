"""Runs the end of a model again without its beginning: everything before a tensor comes from a reference pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from qplan.errors import MeasurementError
from qplan.model.load import LoadedModel
from qplan.model.replace import with_forward
from qplan.sensitivity.metrics import Reference, reference_of


@dataclass(frozen=True)
class ReferencePass:
    """One batch through the unchanged model: what every later replay reuses."""

    loaded: LoadedModel
    tokens: Tensor
    """int64 ``[rows, seq_len]``."""
    layer_outputs: tuple[Any, ...]
    """What each decoder layer returned: hidden states ``[rows, seq_len, hidden]``."""
    reference: Reference

    @classmethod
    def run(cls, loaded: LoadedModel, tokens: Tensor) -> ReferencePass:
        """Run the unchanged model once."""
        layers = loaded.layers
        outputs: dict[int, Any] = {}
        with ExitStack() as stack:
            for index, layer in enumerate(layers):
                stack.enter_context(_hook(layer, partial(_put, outputs, index)))
            logits = loaded.logits(tokens)
        missing = [index for index in range(len(layers)) if index not in outputs]
        if missing:
            msg = f"decoder layers {missing[:5]} were not run by the model; the calibration did not reach them"
            raise MeasurementError(msg)
        held = tuple(outputs[index] for index in range(len(layers)))
        return cls(loaded, tokens, held, reference_of(logits, tokens))

    @contextmanager
    def before_layer(self, layer: int) -> Iterator[None]:
        """Let the layers before ``layer`` return what they returned in the reference pass, without computing."""
        with ExitStack() as stack:
            for index, module in enumerate(self.loaded.layers[:layer]):
                stack.enter_context(with_forward(module, _constant(self.layer_outputs[index])))
            yield

    def logits(self, from_layer: int) -> Tensor:
        """Logits ``[rows, seq_len, vocabulary]``, computing from a layer on; the number of layers: head only."""
        with self.before_layer(from_layer):
            return self.loaded.logits(self.tokens)


@dataclass(frozen=True)
class LayerPass:
    """The linears of one layer (or the head alone) in a replay of the unchanged model."""

    base: ReferencePass
    layer: int
    order: tuple[nn.Linear, ...]
    """In order of execution."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    logits: Tensor

    @classmethod
    def run(cls, base: ReferencePass, layer: int, linears: Sequence[nn.Linear]) -> LayerPass:
        """Replay the unchanged model from a layer on and keep what goes through some linears."""
        calls: list[tuple[nn.Linear, Tensor, Tensor]] = []
        with ExitStack() as stack:
            for linear in linears:
                stack.enter_context(_hook(linear, partial(_note, calls, linear)))
            logits = base.logits(layer)
        order = tuple(call[0] for call in calls)
        if len(set(order)) != len(order):
            msg = f"a linear of layer {layer} runs more than once per pass, which qplan cannot measure"
            raise MeasurementError(msg)
        return cls(base, layer, order, tuple(c[1] for c in calls), tuple(c[2] for c in calls), logits)

    def input_of(self, linear: nn.Linear) -> Tensor:
        """The reference input ``[rows, seq_len, in_features]`` of a linear."""
        return self.inputs[self.order.index(linear)]

    def output_of(self, linear: nn.Linear) -> Tensor:
        """The reference output ``[rows, seq_len, out_features]`` of a linear."""
        return self.outputs[self.order.index(linear)]

    def replay(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Replay with a changed linear, computing only what comes after it.

        Linears of this layer that ran earlier, or that read the same input, cannot have changed: they return their
        reference output.

        Returns:
            the logits ``[rows, seq_len, vocabulary]`` and the changed linear's output.

        Raises:
            MeasurementError: the pass did not reach the linear.
        """
        at = self.order.index(linear)
        seen: list[Tensor] = []
        with ExitStack() as stack:
            for index, other in enumerate(self.order):
                if index < at or (index > at and self.inputs[index] is self.inputs[at]):
                    stack.enter_context(with_forward(other, _constant(self.outputs[index])))
            stack.enter_context(_hook(linear, lambda _x, y: seen.append(y)))
            logits = self.base.logits(self.layer)
        if len(seen) != 1:
            msg = f"the pass ran a linear of layer {self.layer} {len(seen)} times, expected once"
            raise MeasurementError(msg)
        return logits, seen[0]


def _put(outputs: dict[int, Any], index: int, _value: Any, output: Any) -> None:  # noqa: ANN401
    outputs[index] = output


def _note(calls: list[tuple[nn.Linear, Tensor, Tensor]], linear: nn.Linear, value: Tensor, output: Tensor) -> None:
    calls.append((linear, value, output))


def _constant(value: Any) -> Callable[..., Any]:  # noqa: ANN401
    return lambda *_args, **_kwargs: value


@contextmanager
def _hook(module: nn.Module, see: Callable[[Any, Any], None]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, args, output: see(args[0] if args else None, output))
    try:
        yield
    finally:
        handle.remove()
