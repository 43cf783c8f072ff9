"""One forward pass, and backward passes of the log-likelihood of labels that the model itself draws.

The expected square of a derivative of that log-likelihood is the Fisher information, and KL(model || changed model)
is half its quadratic form to second order: ``KL = E[(d log p(label))^2] / 2``, labels drawn from the model (Kullback,
Information Theory and Statistics, 1959, section 2.6; Amari, Natural gradient works efficiently in learning, 1998).
Labels of the text would give the empirical Fisher, which is something else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from qplan.errors import MeasurementError
from qplan.model.finite import all_finite
from qplan.model.load import LoadedModel
from qplan.model.streamed import looked_up

_TOGETHER = 1 << 22
"""Probabilities that are added up at a time: what a C library's heap gives without asking the system."""


class Observer(Protocol):
    """Sees what goes through linears, forwards and backwards."""

    def forward(self, module: nn.Linear, inputs: Tensor, outputs: Tensor) -> None:
        """See a linear's input ``[rows, seq_len, in]`` and output ``[rows, seq_len, out]``."""

    def backward(self, module: nn.Linear, inputs: Tensor, gradients: Tensor, lookups: Tensor | None) -> None:
        """See a linear's input again, and the gradient ``[rows, seq_len, out]`` at its output.

        ``lookups`` is the gradient ``[rows, seq_len, in]`` at the rows looked up from the same weight, where the
        linear is a head tied to the embedding.
        """


@dataclass
class GraphStart:
    """The embedding's output, where the graph begins."""

    tied: bool
    """Whether the head is the embedding's matrix, so that gradients at its lookups matter."""
    folded: Tensor | None
    """Factor ``[hidden]`` of the lookups, where a tied head is folded."""
    output: Tensor | None = None
    """The leaf ``[rows, seq_len, hidden]``, once tokens were looked up."""
    scale: Tensor | float = 1.0
    """What the embedding multiplies rows by: in Gemma the square root of its width, times `folded`."""

    @classmethod
    def of(cls, loaded: LoadedModel) -> GraphStart:
        """The start of a model's graph, to be registered as a forward hook of its embedding."""
        return cls(loaded.card.tensor(loaded.architecture.head).tied, loaded.embedding_scale)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Start the graph at the embedding's output.

        Raises:
            MeasurementError: a tied embedding does more than look rows up and scale them.
        """
        if self.tied:
            rows = looked_up(module, args[0])
            factor = 1.0 if self.folded is None else self.folded
            scaled = (rows * factor).float()
            constant = float(torch.linalg.vecdot(output.float(), scaled).sum() / scaled.square().sum())
            self.scale = constant * factor
            tolerance = max(1e-4, 4 * torch.finfo(output.dtype).eps)
            if not torch.allclose(output.float(), constant * scaled, rtol=tolerance, atol=1e-6, equal_nan=True):
                msg = "the embedding does more than look rows up and scale them; use --mode measured"
                raise MeasurementError(msg)
        self.output = output.detach().requires_grad_()
        return self.output


@dataclass
class _Trace:
    """What hooks see in one forward pass and its backward passes."""

    observer: Observer
    tied_head: nn.Linear | None
    """Shown to the observer last: it needs the gradient at the lookups, which comes at the end."""
    start: GraphStart
    """The embedding, where the graph begins."""
    inputs: dict[nn.Linear, Tensor] = field(default_factory=dict)
    reached: set[nn.Linear] = field(default_factory=set)
    """Linears that a gradient reached."""
    head_gradient: Tensor | None = None

    def see(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """See a linear forwards."""
        if not isinstance(module, nn.Linear) or module in self.inputs:
            msg = "a linear runs more than once per pass, which qplan cannot measure"
            raise MeasurementError(msg)
        self.inputs[module] = args[0].detach()
        self.observer.forward(module, self.inputs[module], output.detach())
        output.register_hook(partial(self.see_gradient, module))

    def see_gradient(self, module: nn.Linear, gradient: Tensor) -> None:
        """See a linear backwards."""
        self.reached.add(module)
        if module is self.tied_head:
            self.head_gradient = gradient
        else:
            self.observer.backward(module, self.inputs[module], gradient, None)

    def see_lookups(self, gradient: Tensor) -> None:
        """See the embedding's output backwards."""
        if self.tied_head is not None and self.head_gradient is not None:
            lookups = gradient * self.start.scale
            self.observer.backward(self.tied_head, self.inputs[self.tied_head], self.head_gradient, lookups)


def sampled_backward(
    loaded: LoadedModel,
    tokens: Tensor,
    seeds: Sequence[int],
    observer: Observer,
    *,
    tensors: Collection[str] | None = None,
) -> Tensor:
    """Run a batch forward once and backward once per seed.

    Args:
        loaded: the model; its weights get no gradients.
        tokens: int64 ``[rows, seq_len]``.
        seeds: one for each draw of labels; the same labels on every device.
        observer: sees linears, once forwards and once for each draw.
        tensors: names of the tensors whose linears are observed; every planned tensor by default.

    Returns:
        float64 ``[labeled tokens]`` on the CPU: negative log-likelihood of the tokens that follow in the text.

    Raises:
        MeasurementError: a linear that is not reached, or logits that are not finite.
    """
    names = [spec.name for spec in loaded.card.tensors] if tensors is None else list(tensors)
    linears = list(dict.fromkeys(loaded.linear(name) for name in names))
    start = GraphStart.of(loaded)
    trace = _Trace(observer, loaded.head if start.tied else None, start)
    with ExitStack() as stack:
        stack.callback(loaded.embedding.register_forward_hook(start).remove)
        for linear in linears:
            stack.callback(linear.register_forward_hook(trace.see).remove)
        with torch.enable_grad():
            logits: Tensor = loaded.model(input_ids=tokens.to(loaded.device), use_cache=False).logits
    if start.output is None:
        msg = "the model did not look its tokens up in its embedding; the calibration cannot reach its layers"
        raise MeasurementError(msg)
    _check_reached(loaded, names, trace.inputs.keys())
    probabilities, nll = probabilities_of(logits.detach(), tokens)
    for index, seed in enumerate(seeds):
        last = index == len(seeds) - 1
        slope = log_likelihood_slope(probabilities if last else probabilities.clone(), seed)
        (lookups,) = torch.autograd.grad(logits, start.output, slope.to(logits.dtype), retain_graph=not last)
        _check_reached(loaded, names, trace.reached)
        trace.see_lookups(lookups)
    return nll


def _check_reached(loaded: LoadedModel, names: Sequence[str], modules: Collection[nn.Linear]) -> None:
    for name in names:
        if loaded.linear(name) not in modules:
            msg = f"{name} was not reached by any calibration token; the model does not use it as its type promises"
            raise MeasurementError(msg)


def probabilities_of(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token probabilities ``[rows, seq_len, vocabulary]`` and the text's negative log-likelihood."""
    log_p = torch.log_softmax(logits.to(torch.float32), -1)
    if not all_finite(log_p):
        msg = "the reference's logits are not finite; the model overflows on this text"
        raise MeasurementError(msg)
    labels = tokens[:, 1:].to(log_p.device).unsqueeze(-1)
    nll = -log_p[:, :-1].gather(-1, labels).flatten()
    return log_p.exp_(), nll.cpu().to(torch.float64)


def log_likelihood_slope(probabilities: Tensor, seed: int) -> Tensor:
    """Gradient ``onehot(label) - p`` of log p(label) with respect to the logits, labels drawn from p; in p's memory."""
    generator = torch.Generator().manual_seed(seed)
    # a number per token, not per token of the vocabulary, and drawn on the CPU: the same on every device
    where = torch.rand(*probabilities.shape[:-1], 1, generator=generator).to(probabilities.device)
    flat = probabilities.flatten(0, -2)
    some = max(1, _TOGETHER // flat.shape[-1])
    parts = zip(flat.split(some), where.flatten(0, -2).split(some), strict=True)
    labels = torch.cat([_drawn(part, places) for part, places in parts])
    flat.neg_().scatter_add_(-1, labels, flat.new_ones(len(flat), 1))
    return probabilities


def _drawn(probabilities: Tensor, where: Tensor) -> Tensor:
    """Labels ``[tokens, 1]`` at places ``[tokens, 1]`` between 0 and 1 of their distributions."""
    cumulative = probabilities.cumsum(-1)
    return torch.searchsorted(cumulative, where * cumulative[:, -1:]).clamp_(max=probabilities.shape[-1] - 1)
