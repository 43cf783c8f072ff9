"""Runs a model one decoder layer at a time, forwards and then backwards: only what lies between layers is kept.

On the way back a layer computes again, with a graph, from its kept input, and takes the gradient that the layers behind
it left. So everything that a layer's linears saw, of all tokens, is at hand at once, and of one layer at a time. Where
boundaries are kept on disk, both ways go on from the last layer that was finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qplan.errors import MeasurementError
from qplan.model.backward import GraphStart, log_likelihood_slope, probabilities_of
from qplan.model.boundaries import Boundaries
from qplan.model.half_products import with_half_gradients, with_half_outputs
from qplan.model.load import LoadedModel
from qplan.model.mixture import RoutedLinear
from qplan.model.replace import with_forward
from qplan.model.streamed import Streamed
from qplan.tensors import Role

Step = Callable[[], None]
"""Called after each batch of each layer."""

HELD_BYTES = 1 << 30
"""Weights of a streamed layer that are kept in memory while it runs on all batches."""


def run_layer(loaded: LoadedModel, index: int, batch: Tensor, given: Any) -> Any:  # noqa: ANN401 - layers differ
    """Compute one decoder layer, or the head behind the last one, and nothing else.

    Args:
        loaded: the model.
        index: of the layer; their number for the final norm and the head.
        batch: token ids, int64 ``[rows, seq_len]``.
        given: what the layer before it returned; None for the first, which reads the embedding.

    Returns:
        What the layer returned; the logits ``[rows, seq_len, vocabulary]`` of the head.
    """
    returned: list[Any] = [given]

    def keep(_module: nn.Module, _args: object, output: object) -> None:
        returned[0] = output

    def passed(*_args: object, **_kwargs: object) -> object:
        return returned[0]

    with ExitStack() as stack:
        for other, layer in enumerate(loaded.layers):
            if other == index:
                stack.callback(layer.register_forward_hook(keep).remove)
            else:
                stack.enter_context(with_forward(layer, passed))
        if index < len(loaded.layers):
            stack.enter_context(with_forward(loaded.head, lambda x: x[..., :1]))
        model: Any = loaded.model
        logits = model(input_ids=batch.to(loaded.device), use_cache=False).logits
    return returned[0] if index < len(loaded.layers) else logits


def hidden_of(returned: Any) -> Tensor:  # noqa: ANN401 - layers differ
    """The hidden states ``[rows, seq_len, hidden]`` of what a layer returned."""
    found: Tensor = returned if isinstance(returned, Tensor) else returned[0]
    return found


@contextmanager
def with_layer_read(loaded: LoadedModel, index: int) -> Iterator[None]:
    """Read the weights of a decoder layer, or of the head behind the last, once for all batches of a block.

    As far as `HELD_BYTES` go: others of a streamed model are read for every batch, and those of experts, which few
    tokens reach.
    """
    part, left = loaded.layers[index] if index < len(loaded.layers) else loaded.head, HELD_BYTES
    linears = [one for one in part.modules() if isinstance(one, nn.Linear) and not isinstance(one, RoutedLinear)]
    with ExitStack() as stack:
        for linear in linears:
            size = 4 * linear.in_features * linear.out_features
            # the head's is in memory as a whole whenever it is used
            if isinstance(linear, Streamed) and (size <= left or part is linear):
                stack.enter_context(linear.with_weight(linear.weight))
                left -= size
        yield


@dataclass
class WayThere:
    """All batches through one layer after the other, without gradients."""

    loaded: LoadedModel
    batches: Sequence[Tensor]
    """Token ids, int64 ``[rows, seq_len]`` each."""
    kept: int = 0
    """Of so many first batches, what layers return is kept, for the way back."""
    between: Boundaries = field(default_factory=Boundaries)
    """What was kept; of the other batches, what the last layers returned."""
    half: bool = False
    """Whether layers compute products of bfloat16 on batches that are not kept, see `half_products`."""

    def run(self, index: int, number: int) -> None:
        """Compute a layer on a batch, after the layers before it; their number stands for the head."""
        given = self.between.get(index - 1, number) if index else None
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.half and number >= self.kept and index < len(self.loaded.layers):
                stack.enter_context(with_half_outputs(but_routers(self.loaded, index)))
            found = run_layer(self.loaded, index, self.batches[number], given)
        if index < len(self.loaded.layers):
            self.between.put(index, number, found)
        if number == len(self.batches) - 1:
            self.between.drop(index - 2, range(self.kept, len(self.batches)))

    @property
    def done(self) -> int:
        """How many layers have run on all batches."""
        everything = range(len(self.batches))
        layers = range(len(self.loaded.layers), 0, -1)
        return next((count for count in layers if self.between.has(count - 1, everything)), 0)


@dataclass
class LayerTrace:
    """What the linears of one layer, or the head, saw of all batches."""

    index: int
    """Of the layer; their number for the head."""
    inputs: dict[nn.Linear, list[Tensor]] = field(default_factory=dict)
    """``[rows, tokens, in_features]`` by batch; linears that read the same tensor share it."""
    gradients: dict[nn.Linear, list[Tensor]] = field(default_factory=dict)
    """``[rows, tokens, out_features]`` by batch: of the log-likelihood of drawn labels, at the output."""
    signals: dict[nn.Linear, list[Tensor]] = field(default_factory=dict)
    """Squares of the output summed over tokens, float32 ``[out_features]`` by batch."""
    energies: dict[nn.Linear, list[Tensor]] = field(default_factory=dict)
    """Squares of the gradient summed over tokens, float32 ``[out_features]`` by batch."""
    slopes: dict[nn.Linear, list[Tensor]] = field(default_factory=dict)
    """``[rows, tokens, in_features]`` by batch: gradient at the input, of linears in `drawn` alone."""
    drawn: dict[nn.Linear, Tensor] = field(default_factory=dict)
    """Output features, int64, that gradients are kept of, where all are too many."""
    peak: float = 0.0
    """Largest magnitude that the layer returned."""

    def see(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """See a linear forwards, and its gradient later."""
        if not isinstance(module, nn.Linear):
            msg = f"{type(module).__name__} is not a linear"
            raise TypeError(msg)
        self.inputs.setdefault(module, []).append(args[0].detach())
        self.signals.setdefault(module, []).append(_squares(output.detach()))
        for found in (self.gradients, self.energies, self.slopes):
            found.setdefault(module, [])
        output.register_hook(partial(self._see_gradient, module))
        if module in self.drawn:  # nothing else reads the input of a head, so its gradient is the one through the head
            args[0].register_hook(lambda slope: self.slopes[module].append(slope.detach()))

    def _see_gradient(self, module: nn.Linear, gradient: Tensor) -> None:
        gradient = gradient.detach()
        self.energies[module].append(_squares(gradient))
        if module in self.drawn:
            gradient = gradient[..., self.drawn[module]]
        self.gradients[module].append(gradient)


@dataclass
class WayBack:
    """One backward pass of the log-likelihood of labels that the model draws, from the head to the embedding."""

    loaded: LoadedModel
    batches: Sequence[Tensor]
    """Token ids, int64 ``[rows, seq_len]`` each."""
    between: Boundaries
    """What each layer returned of each of these batches; forgotten on the way."""
    seeds: Sequence[int]
    """For the labels, one per batch; see `qplan.model.backward`."""
    step: Step = lambda: None
    drawn: dict[nn.Linear, Tensor] = field(default_factory=dict)
    """See `LayerTrace.drawn`."""
    half: bool = False
    """Whether gradients at inputs are products of bfloat16, see `half_products`."""
    nll: list[Tensor] = field(default_factory=list)
    """float64 ``[labeled tokens]`` by batch: negative log-likelihood of the text, once the head was passed."""
    lookups: list[Tensor] = field(default_factory=list)
    """``[rows, seq_len, hidden]`` by batch: gradient at the rows that are looked up from a tied head's weight, in the
    end; empty if the head is not tied."""

    def traces(self) -> Iterator[LayerTrace]:
        """What the head saw, then the layers from last to first.

        Layers that an earlier way back had finished are left out, and a head that is not tied to the embedding; a
        layer is finished when the next trace is asked for.
        """
        count, everything = len(self.loaded.layers), range(len(self.batches))
        tied = self.loaded.card.tensor(self.loaded.architecture.head).tied
        reached = self.between.reached(count)
        slopes = [] if reached is None else self.between.slopes(reached)
        for index in range(count, -1, -1):
            again = reached is not None and index >= reached
            if again and not (index == count and tied):
                continue
            trace = LayerTrace(index, drawn=self.drawn)
            linears = names_by_linear(self.loaded, index)
            found: list[Tensor] = []
            with ExitStack() as stack:
                for module in linears:
                    stack.callback(module.register_forward_hook(trace.see).remove)
                if self.half:
                    stack.enter_context(with_half_gradients(linears))
                stack.enter_context(with_layer_read(self.loaded, index))
                for number, batch in enumerate(self.batches):
                    given = self.between.get(index - 1, number) if index else None
                    found.append(self._back(trace, number, batch, given, slopes))
                    self.step()
            yield trace
            if index and not again:
                slopes = found
                self.between.put_slopes(index, slopes)
            # a tied head is looked at again in the end, and by a run that goes on
            if index != count - 1 or not tied:
                self.between.drop(index, everything)

    def _back(self, trace: LayerTrace, number: int, batch: Tensor, given: Any, slopes: Sequence[Tensor]) -> Tensor:  # noqa: ANN401
        """The gradient at what a layer, or the head, was given."""
        index = trace.index
        leaf: Tensor | None = None
        start = GraphStart.of(self.loaded)
        with ExitStack() as stack, torch.enable_grad():
            if index == 0:
                stack.callback(self.loaded.embedding.register_forward_hook(start).remove)
                fresh = None
            else:
                leaf = hidden_of(given).detach().requires_grad_()
                fresh = leaf if isinstance(given, Tensor) else (leaf, *given[1:])
            output = run_layer(self.loaded, index, batch, fresh)
        trace.peak = max(trace.peak, float(hidden_of(output).detach().abs().max()))
        if index == len(self.loaded.layers):
            probabilities, nll = probabilities_of(output.detach(), batch)
            self.nll.append(nll)
            slope = log_likelihood_slope(probabilities, self.seeds[number]).to(output.dtype)
        else:
            slope = slopes[number]
        leaf = start.output if leaf is None else leaf
        if leaf is None:
            msg = "the model did not look its tokens up in its embedding; the calibration cannot reach its layers"
            raise MeasurementError(msg)
        (found,) = torch.autograd.grad(hidden_of(output), leaf, slope)
        if index == 0 and start.tied:
            self.lookups.append(found * start.scale)
        return found


def _squares(values: Tensor) -> Tensor:
    """Squares of ``values [..., features]`` summed over all but the features, float32; logits are too many to copy."""
    found: Tensor = torch.linalg.vector_norm(values.float().flatten(0, -2), dim=0).square()
    return found


def but_routers(loaded: LoadedModel, index: int) -> list[nn.Linear]:
    """Linears of a layer but its routers, whose choice between experts a little error turns."""
    names = names_by_linear(loaded, index)
    return [linear for linear, (first, *_) in names.items() if loaded.card.tensor(first).role is not Role.ROUTER]


def names_by_linear(loaded: LoadedModel, index: int) -> dict[nn.Linear, list[str]]:
    """Names of the tensors in each linear of a layer; the number of layers stands for the head."""
    modules: dict[nn.Linear, list[str]] = {}
    for spec in loaded.card.tensors:
        if (len(loaded.layers) if spec.layer is None else spec.layer) == index:
            modules.setdefault(loaded.linear(spec.name), []).append(spec.name)
    return modules
