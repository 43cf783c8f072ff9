"""Reruns only the part of a model behind a changed tensor; everything before it comes from a reference pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qplan.errors import MeasurementError
from qplan.model.load import LoadedModel
from qplan.model.replace import with_forward
from qplan.sensitivity.last_hidden import LastHidden
from qplan.sensitivity.metrics import Reference, TokenStats, compare, reference_of


@dataclass(frozen=True)
class ReferencePass:
    """One pass of a batch through the unchanged model, which every later replay reuses."""

    loaded: LoadedModel
    tokens: Tensor
    """The batch, int64 ``[rows, seq_len]``."""
    layer_outputs: tuple[Any, ...]
    """What each decoder layer returned: hidden states ``[rows, seq_len, hidden]``."""
    reference: Reference
    last_hidden: LastHidden | None
    """Compares variants before the head; None if the logits are more than the output of a plain linear."""

    @classmethod
    def run(cls, loaded: LoadedModel, tokens: Tensor) -> ReferencePass:
        """Run the unchanged model once.

        Raises:
            MeasurementError: a decoder layer does not run, or logits are not finite.
        """
        layers = loaded.layers
        outputs: dict[nn.Module, tuple[Any, Any]] = {}

        def put(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
            outputs[module] = args[0] if args else None, output

        with ExitStack() as stack:
            for module in (*layers, loaded.head):
                stack.callback(module.register_forward_hook(put).remove)
            logits = loaded.logits(tokens)
        missing = [index for index, layer in enumerate(layers) if layer not in outputs]
        if missing:
            msg = f"decoder layers {missing[:5]} were not run by the model; the calibration did not reach them"
            raise MeasurementError(msg)
        reference = reference_of(logits, tokens)
        last_hidden = None
        if loaded.head in outputs and torch.equal(outputs[loaded.head][1], logits):
            last_hidden = LastHidden.of(reference, outputs[loaded.head][0], loaded.head)
        return cls(loaded, tokens, tuple(outputs[layer][1] for layer in layers), reference, last_hidden)

    def logits(self, from_layer: int, times: int = 1) -> Tensor:
        """Logits ``[times * rows, seq_len, vocabulary]`` of a pass that starts computing at a layer.

        Args:
            from_layer: first layer that computes; the layers before it return its input. The number of layers runs only
                what follows the layers.
            times: how often the batch is repeated along the rows.
        """
        with ExitStack() as stack:
            if from_layer:
                held = self.repeated(self.layer_outputs[from_layer - 1], times)
                for module in self.loaded.layers[:from_layer]:
                    stack.enter_context(with_forward(module, _constant(held)))
            return self.loaded.logits(self.tokens.repeat(times, 1))

    def repeated(self, value: Any, times: int) -> Any:  # noqa: ANN401
        """What a module would return for repeated rows: ``value`` with its tensors repeated along the rows."""
        if times == 1:
            return value
        rows = len(self.tokens)

        def repeat(tensor: Tensor) -> Tensor:
            # rows may be flattened with tokens; values shared by all rows have no such dimension
            return torch.cat([tensor] * times) if tensor.dim() > 1 and tensor.shape[0] % rows == 0 else tensor

        return _mapped(value, repeat)


@dataclass(frozen=True)
class Call:
    """One module's run in a pass."""

    module: nn.Module
    start: int
    """Position of its start in the sequence of all starts and ends of the pass."""
    stop: int
    """Position of its end in that sequence."""
    input: Any
    """First positional argument; None if there is none."""
    output: Any

    def returns(self, other: Call) -> bool:
        """Whether the other ran inside this one, and this one returned the other's output and nothing else."""
        inside = self.start < other.start and other.stop < self.stop
        return inside and [id(tensor) for tensor in _tensors(self.output)] == [id(other.output)]


@dataclass(frozen=True)
class LayerPass:
    """The calls in one layer, or in the head, during a replay of the unchanged model."""

    base: ReferencePass
    layer: int
    calls: dict[nn.Module, Call]
    """Calls of the modules that ran exactly once: those inside the layer, and the watched linears."""
    end: Tensor
    """Input of `compare`: hidden states before the head, or logits."""

    @classmethod
    def run(cls, base: ReferencePass, layer: int, linears: Sequence[nn.Linear]) -> LayerPass:
        """Replay the unchanged model from a layer on, and keep inputs and outputs of its modules and of some linears.

        Raises:
            MeasurementError: a linear runs more than once.
        """
        layers = base.loaded.layers
        inside = list(layers[layer].modules())[1:] if layer < len(layers) else []
        recorder = _Recorder()
        with ExitStack() as stack:
            for module in dict.fromkeys([*inside, *linears]):
                stack.enter_context(recorder.watching(module))
            end = _end(base, layer)
        counts = Counter(call.module for call in recorder.calls)
        if any(counts[linear] > 1 for linear in linears):
            msg = f"a linear of layer {layer} runs more than once per pass, which qplan cannot measure"
            raise MeasurementError(msg)
        return cls(base, layer, {c.module: c for c in recorder.calls if counts[c.module] == 1}, end)

    def input_of(self, linear: nn.Linear) -> Tensor:
        """The reference input ``[rows, seq_len, in_features]`` of a linear."""
        value: Tensor = self.calls[linear].input
        return value

    def output_of(self, linear: nn.Linear) -> Tensor:
        """The reference output ``[rows, seq_len, out_features]`` of a linear."""
        value: Tensor = self.calls[linear].output
        return value

    def replay(self, linear: nn.Linear, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Replay the rest of the model with other outputs of a linear.

        Modules that ended before the linear began, and linears with the same input, return what they returned before.
        A module that returns the linear's output returns the new one. Several outputs pass through the rest of the
        model together, as additional rows.

        Args:
            linear: the changed linear.
            outputs: its new outputs, ``[rows, seq_len, out_features]`` each.

        Returns:
            The input of `compare` for each of the outputs.
        """
        at, times = self.calls[linear], len(outputs)
        other = outputs[0] if times == 1 else torch.cat(tuple(outputs))
        with ExitStack() as stack:
            for module, call in self.calls.items():
                if call is at or call.returns(at):
                    value = _mapped(call.output, lambda _: other)
                elif call.stop < at.start or (isinstance(module, nn.Linear) and call.input is at.input):
                    value = self.base.repeated(call.output, times)
                else:
                    continue
                stack.enter_context(with_forward(module, _constant(value)))
            end = _end(self.base, self.layer, times)
        return tuple(end.tensor_split(times))

    def compare(self, end: Tensor) -> TokenStats:
        """Compare a variant of this layer with the reference.

        Raises:
            MeasurementError: a loss is not finite.
        """
        last = _last_hidden(self.base, self.layer)
        return compare(self.base.reference, end) if last is None else last.compare(end)


@dataclass
class _Recorder:
    """Records when modules start and end."""

    calls: list[Call] = field(default_factory=list)
    _clock: int = 0
    _begun: list[int] = field(default_factory=list)

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Record the calls of a module."""
        handles = (
            module.register_forward_pre_hook(lambda _module, _args: self._begun.append(self._tick())),
            module.register_forward_hook(self._end),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        self.calls.append(Call(module, self._begun.pop(), self._tick(), args[0] if args else None, output))

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _last_hidden(base: ReferencePass, layer: int) -> LastHidden | None:
    """What compares variants of a layer; None for the head, which is compared at the logits."""
    return base.last_hidden if layer < len(base.loaded.layers) else None


def _end(base: ReferencePass, layer: int, times: int = 1) -> Tensor:
    with ExitStack() as stack:
        if _last_hidden(base, layer) is not None:
            stack.enter_context(with_forward(base.loaded.head, lambda hidden: hidden))
        return base.logits(layer, times)


def _tensors(value: Any) -> Iterator[Tensor]:  # noqa: ANN401
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """A tensor, or a nested tuple or list of tensors, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(part, change) for part in value])
    return value


def _constant(value: Any) -> Callable[..., Any]:  # noqa: ANN401
    return lambda *_args, **_kwargs: value
