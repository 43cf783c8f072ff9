"""Trains a fold end to end: the scales of all sites at once, on the loss of the whole model with int8 activations.

`qplan.folding.fit` minimizes what is expected of each site by itself. Here the model computes with the engine's int8
activations and with weights that are rounded too, and the KL divergence from the float model is minimized on
calibration tokens, as OmniQuant (arXiv 2308.13137) does block by block. The model stays as it is: with scales ``s`` an
input ``x`` is seen as ``s * round(x / s)``, and a weight ``w`` as ``round(w s) / s``. Which part of a step a number is
rounded by is constant; what trains is how large a step is, in units of the exact numbers: ``s * step(x / s)`` and
``step(w s) / s``. So gradients are those of the noise, and exact numbers have none.

Weights are rounded to nearest there, which loses more than what ships; their errors count for `_SHARE` of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from qplan.folding.fit import SMALLEST, by_channel
from qplan.folding.fold import FoldSite, fold_sites
from qplan.formats import QuantFormat
from qplan.model.layerwise import WayThere, run_layer
from qplan.model.load import LoadedModel
from qplan.model.mixture import RoutedLinear
from qplan.model.replace import with_forward
from qplan.rounding import Int8Activations
from qplan.rounding.rtn import rtn
from qplan.settings import Progress
from qplan.tuning.schedule import Schedule
from qplan.tuning.through import LossyModel
from qplan.tuning.training import Training
from qplan.uniform import uniform_formats

BITS = 8
"""Width of the uniform model that a fold is trained for: at 4 bits weights lose most, and the scales of
`qplan.folding.fit` lose less (``reports/folding``)."""

RATE = 0.03
"""Largest rate of Adam on log scales."""

_SHARE = 0.65
"""Errors of weights as they ship, relative to rounding to nearest; its square is what is left of a loss at 8 bits."""


@dataclass(frozen=True)
class FoldTraining:
    """Scales of every site of a model, and the training of them."""

    loaded: LoadedModel
    tokens: Tensor
    """int64 ``[rows, seq_len]``; of the last, which are not trained on, nothing else was fitted to any."""
    activations: Int8Activations
    """Those of the engine."""
    schedule: Schedule
    """Which rows are trained on, and when."""
    inputs: Mapping[str, str]
    """What the training depends on."""
    path: Path | None = None
    """File for what a killed training goes on from; None to begin anew."""
    logs: dict[str, nn.Parameter] = field(default_factory=dict, init=False)
    """Logarithms of the scales ``[channels]`` by site name."""

    def __post_init__(self) -> None:
        """Begin where nothing is folded."""
        for site in self.sites:
            self.logs[site.name] = nn.Parameter(torch.zeros(site.channels, device=self.loaded.device))

    @cached_property
    def sites(self) -> tuple[FoldSite, ...]:
        """Where scales move, but for experts', whose inputs are few."""
        loaded = self.loaded
        return tuple(
            site
            for site in fold_sites(loaded)
            if not any(isinstance(loaded.linear(name), RoutedLinear) for name in site.readers)
        )

    @property
    def model(self) -> LossyModel:
        """The model as it computes with the scales as they are now."""
        return _FoldedModel(self.loaded, self)

    @property
    def scales(self) -> dict[str, Tensor]:
        """The scales ``[channels]`` by site name, as they are now."""
        return {name: log.detach().exp() for name, log in self.logs.items()}

    def begin(self, rows: int, progress: Progress | None = None) -> None:
        """Start from the root of each channel's root mean square, on the first rows of the tokens.

        That is SmoothQuant's scale (arXiv 2211.10438, equation 4, alpha 0.5) without the weights' part.
        """
        squares = {site.name: torch.zeros(self.loaded.linear(site.name).in_features) for site in self.sites}
        batches = self.tokens[:rows].split(1)
        way = WayThere(self.loaded, batches)
        layers = len(self.loaded.layers)
        for index in range(layers + 1):
            with self._seen(index, squares):
                for number in range(len(batches)):
                    if index < layers:
                        way.run(index, number)
                    else:
                        with torch.no_grad():
                            run_layer(self.loaded, index, batches[number], way.between.get(index - 1, number))
            if progress is not None:
                progress(index + 1, layers + 1)
        for site in self.sites:
            means = by_channel(site, squares[site.name].unsqueeze(0)).mean(0) / self.tokens[:rows].numel()
            log = means.clamp(min=SMALLEST).log() / 4
            with torch.no_grad():
                self.logs[site.name].copy_(log - log.mean())

    def run(self, progress: Progress | None = None) -> float:
        """Train, and keep the scales that lose least on held-out rows; returns that loss, in nats per token.

        Args:
            progress: called after each step.
        """
        training = Training(self.model, self.tokens, self.schedule, self.logs, self.path, self.inputs)
        for done in training.steps():
            if progress is not None:
                progress(done, self.schedule.steps)
        return min(training.state.losses)

    def unfolded_loss(self) -> float:
        """What the model loses on held-out rows without any scales, in nats per token."""
        plain = replace(self, path=None)  # its scales are new ones
        return Training(plain.model, self.tokens, self.schedule, plain.logs, None, {}).held_out_loss()

    @contextmanager
    def rounded(self, index: int) -> Iterator[None]:
        """Compute a layer, or the head behind the last, with int8 activations and weights as folded ones are."""
        with ExitStack() as stack:
            for site, members in self._of_layer(index):
                seen = _Seen(partial(self._input, site))
                for name in members:
                    linear = self.loaded.linear(name)
                    stack.enter_context(with_forward(linear, partial(self._product, site, name, linear, seen)))
            yield

    def _product(self, site: FoldSite, name: str, linear: nn.Linear, seen: _Seen, x: Tensor) -> Tensor:
        weight = linear.weight
        if name != self.loaded.architecture.head:  # as much work as all others, and a twentieth of their errors
            weight = _rounded_weight(weight.detach(), self._formats[name], site.expand(self.logs[site.name].exp()))
        return functional.linear(seen.of(x), weight.to(x), linear.bias)

    def _input(self, site: FoldSite, x: Tensor) -> Tensor:
        scale = site.expand(self.logs[site.name].exp())
        return _rounded_input(x, self.activations, self.activations.block(self._formats[site.name]), scale)

    @cached_property
    def _formats(self) -> dict[str, QuantFormat]:
        return uniform_formats(self.loaded.card, BITS)

    def _of_layer(self, index: int) -> Sequence[tuple[FoldSite, list[str]]]:
        """Sites whose readers run in a layer, with one tensor of each linear among them."""
        layers, card = len(self.loaded.layers), self.loaded.card
        at = index if index < layers else None
        found = []
        for site in self.sites:
            if card.tensor(site.name).layer == at:
                members = {self.loaded.linear(name): name for name in reversed(site.readers)}
                found.append((site, list(members.values())))
        return found

    @contextmanager
    def _seen(self, index: int, squares: Mapping[str, Tensor]) -> Iterator[None]:
        """Add squares of the sites' inputs while a layer runs."""
        with ExitStack() as stack:
            for site, _ in self._of_layer(index):

                def see(_: nn.Module, args: tuple[Tensor, ...], name: str = site.name) -> None:
                    squares[name] += args[0].detach().float().square().flatten(0, -2).sum(0).cpu()

                stack.callback(self.loaded.linear(site.name).register_forward_pre_hook(see).remove)
            yield


@dataclass(frozen=True)
class _FoldedModel(LossyModel):
    """A model as it would compute with the scales of a training."""

    training: FoldTraining

    def quantized(self, index: int) -> AbstractContextManager[None]:
        """See `LossyModel.quantized`."""
        return self.training.rounded(index)


@dataclass
class _Seen:
    """A layer's input as its readers see it, computed once: they run one after the other."""

    compute: Callable[[Tensor], Tensor]
    _last: Tensor | None = None
    _found: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        if self._found is None or self._last is not x:
            self._last, self._found = x, self.compute(x)
        return self._found


def _rounded_input(x: Tensor, activations: Int8Activations, block: int, scale: Tensor) -> Tensor:
    """Inputs ``[..., tokens, features]`` as int8 of ``x / scale``, in units of ``x``; see the module."""
    divided = x / scale
    blocks = divided.unflatten(-1, (-1, block or x.shape[-1]))
    if activations.dynamic_option == 0:
        step = blocks.abs().amax(-1, keepdim=True)
    else:
        step = blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)
    with torch.no_grad():
        error = (activations.round(divided, block) - divided).view_as(blocks)
        errors = torch.where(step == 0, 0.0, error / step)
    found: Tensor = x + (step * errors).view_as(x) * scale
    return found


def _rounded_weight(weight: Tensor, fmt: QuantFormat, columns: Tensor) -> Tensor:
    """Weights ``[out, in]`` as integers of ``weight * columns``, in units of ``weight``; see `_SHARE`."""
    folded = weight * columns
    blocks = folded.view(len(weight), -1, fmt.block or weight.shape[1])
    step = blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)
    with torch.no_grad():
        error = (rtn(folded, fmt).dequantize().to(folded) - folded).view_as(blocks)
        errors = torch.where(step == 0, 0.0, error / step).mul_(_SHARE)
    return weight + (step * errors).view_as(weight) / columns
