"""Runs the end of a model again without its beginning: everything before a tensor comes from a reference pass."""

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
    """One batch through the unchanged model: what every later replay reuses."""

    loaded: LoadedModel
    tokens: Tensor
    """int64 ``[rows, seq_len]``."""
    layer_outputs: tuple[Any, ...]
    """What each decoder layer returned: hidden states ``[rows, seq_len, hidden]``."""
    reference: Reference
    last_hidden: LastHidden | None
    """Where variants are compared if the head is a plain linear; None if more happens to the logits."""

    @classmethod
    def run(cls, loaded: LoadedModel, tokens: Tensor) -> ReferencePass:
        """Run the unchanged model once.

        Raises:
            MeasurementError: a decoder layer that does not run, logits that are not finite.
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
        """Logits ``[times * rows, seq_len, vocabulary]`` of a pass that computes from a layer on.

        Args:
            from_layer: first layer that computes, the layers before return its input; the number of layers for
                nothing but what follows them.
            times: how often the rows are repeated, one after the other.
        """
        with ExitStack() as stack:
            if from_layer:
                held = self.repeated(self.layer_outputs[from_layer - 1], times)
                for module in self.loaded.layers[:from_layer]:
                    stack.enter_context(with_forward(module, _constant(held)))
            return self.loaded.logits(self.tokens.repeat(times, 1))

    def repeated(self, value: Any, times: int) -> Any:  # noqa: ANN401
        """What a module would return for the rows repeated: ``value`` with its tensors repeated along the rows."""
        if times == 1:
            return value
        rows = len(self.tokens)

        def repeat(tensor: Tensor) -> Tensor:
            # rows may be flattened with tokens, or absent where a value is the same for all
            return torch.cat([tensor] * times) if tensor.dim() > 1 and tensor.shape[0] % rows == 0 else tensor

        return _mapped(value, repeat)


@dataclass(frozen=True)
class Call:
    """One module's run in a pass."""

    module: nn.Module
    start: int
    """Position of its beginning among all beginnings and ends of the pass."""
    stop: int
    """Position of its end."""
    input: Any
    """First positional argument; None without any."""
    output: Any

    def returns(self, other: Call) -> bool:
        """Whether the other ran inside this one, whose output is the other's, alone."""
        inside = self.start < other.start and other.stop < self.stop
        return inside and [id(tensor) for tensor in _tensors(self.output)] == [id(other.output)]


@dataclass(frozen=True)
class LayerPass:
    """What ran in one layer (or the head alone) in a replay of the unchanged model."""

    base: ReferencePass
    layer: int
    calls: dict[nn.Module, Call]
    """Of modules that ran once: those inside the layer, and its linears."""
    end: Tensor
    """What `compare` takes: hidden states before the head, or logits."""

    @classmethod
    def run(cls, base: ReferencePass, layer: int, linears: Sequence[nn.Linear]) -> LayerPass:
        """Replay the unchanged model from a layer on and keep what goes through its modules and some linears.

        Raises:
            MeasurementError: a linear that runs more than once.
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
        """Ends with other outputs of a linear, computing only what comes after it.

        What ended before the linear began, and linears that read the same input, cannot have changed: they return
        what they returned. So does a module whose output is the linear's own: it returns the other one. Several
        outputs go through the rest of the model together, as more rows.

        Args:
            linear: one that ran.
            outputs: what it gives instead, ``[rows, seq_len, out_features]`` each.

        Returns:
            what `compare` takes, for each of the outputs.
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
            MeasurementError: a loss that is not finite.
        """
        last = _last_hidden(self.base, self.layer)
        return compare(self.base.reference, end) if last is None else last.compare(end)


@dataclass
class _Recorder:
    """Notes when modules begin and end."""

    calls: list[Call] = field(default_factory=list)
    _clock: int = 0
    _begun: list[int] = field(default_factory=list)

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Note the runs of a module."""
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
    """None for the head itself, which is compared at the logits."""
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
    """A tensor, or a tuple or list of such, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(part, change) for part in value])
    return value


def _constant(value: Any) -> Callable[..., Any]:  # noqa: ANN401
    return lambda *_args, **_kwargs: value
