"""Losses of all formats of a tensor from its input and the gradient at its output, for the cost of two products.

With ``a = <G, dY>`` summed over a sequence, ``E[a^2] / 2`` is the sequence's KL in nats to second order (see
`qplan.model.backward`). One number per sequence is unbiased but noisy: its square has a relative variance of 2.
Rounding errors are independent, so parts of the square vanish on average. Leaving those out removes most of the noise:

- weights: errors of different rows of a matrix are independent. ``a = sum_o <M_o, dW_o>`` with ``M = G^T X`` becomes
  ``sum_o <M_o, dW_o>^2``: thousands of squares instead of one, and all correlations between tokens and between
  input features are kept.
- int8 activations: errors of different tokens are independent of each other and of the weights' errors. They add
  ``sum_t <U_t, dX_t>^2`` with ``U = G W``, the same for all integer formats with the same activation scales.

How far this and the plain square are from measured losses is in ``reports/sensitivity/``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.model.mixture import RoutedLinear
from qplan.rounding import Int8Activations
from qplan.sensitivity.menu import Menu
from qplan.sensitivity.stored_weights import StoredWeights

_Key = TypeVar("_Key", bound=Hashable)

_CHUNK_ELEMENTS = 1 << 21
"""Elements of products and of weight errors processed at a time: a bound on memory."""


_NOISE_ROWS = 64
"""Output features, evenly spread, at which correlations between errors are looked at where noise is estimated."""


@dataclass(frozen=True)
class Columns:
    """What each input feature contributes to a tensor's output noise; the same for all batches."""

    weights: Tensor
    """float32 ``[in_features]``: sum over output features of squared weights."""
    errors: Tensor
    """float32 ``[formats, in_features]``: sum over output features of squared weight errors."""


@dataclass
class FisherSetup:
    """What all batches of one analysis share."""

    loaded: LoadedModel
    menu: Menu
    stored: StoredWeights
    activations: Int8Activations | None
    """Activations of integer formats under memory low; None if only memory normal is estimated."""
    columns: dict[str, Columns] = field(default_factory=dict)
    """Columns by tensor; filled by the first batch."""
    names: dict[nn.Linear, list[str]] = field(init=False)
    """Names of the tensors in each linear."""

    def __post_init__(self) -> None:
        """Find the linear of each tensor."""
        self.names = {}
        for name in self.menu:
            self.names.setdefault(self.loaded.linear(name), []).append(name)

    def block(self, fmt: QuantFormat) -> int | None:
        """Number of features that share a scale of int8 activations, 0 for all; None for float activations."""
        return None if self.activations is None or fmt.is_float else self.activations.block(fmt)

    def blocks(self, name: str) -> list[int]:
        """The distinct activation blocks of a tensor's formats, see `block`."""
        return sorted({block for fmt in self.menu[name] if (block := self.block(fmt)) is not None})


@dataclass(frozen=True)
class Energies:
    """Sums of squares over the tokens of a batch, from which a tensor's signal-to-noise ratio is computed."""

    signal: float
    """Sum of squares of the output."""
    inputs: Tensor
    """Sums of squares of the input, float32 ``[in_features]``."""
    rounding: dict[int, Tensor]
    """Sums of squares of the input's int8 error by activation block, float32 ``[in_features]``."""


@dataclass
class Noise:
    """Output noise of some output features, and what independent errors of different input features would make."""

    exact: Tensor | float = 0.0
    """float64 ``[formats]``, or a number."""
    independent: Tensor | float = 0.0
    """The same."""

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add that of errors ``left [tokens, in] @ right.T [in, features]``, either of which may have formats ahead."""
        independent = right.square() @ left.square().sum(-2)
        exact = (left @ right.transpose(-1, -2)).square().sum(-2)
        self.exact = self.exact + exact.sum(-1).to("cpu", torch.float64)
        self.independent = self.independent + independent.sum(-1).to("cpu", torch.float64)

    @property
    def ratio(self) -> Tensor:
        """One over the other, 1 where there is no noise: float64 ``[formats]``, or a number."""
        exact, independent = (torch.as_tensor(part, dtype=torch.float64) for part in (self.exact, self.independent))
        return torch.where(independent > 0, exact / independent, torch.ones_like(exact))


@dataclass
class FisherObserver:
    """Collects the squares of one batch, summed over draws; see `qplan.model.backward.Observer`."""

    setup: FisherSetup
    tokens: Tensor
    """The batch, int64 ``[rows, seq_len]``."""
    weight_squares: dict[str, Tensor] = field(default_factory=dict)
    """Squares from weight errors by tensor: float64 ``[formats, rows]`` on the CPU."""
    activation_squares: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """Squares from activation errors by tensor and block: float64 ``[rows]`` on the CPU; empty without int8
    activations."""
    energies: dict[str, Energies] = field(default_factory=dict)
    """Energies by tensor."""
    weight_noise: dict[str, Noise] = field(default_factory=dict)
    """By tensor, of weight errors in every format at some output features."""
    activation_noise: dict[tuple[str, int], Noise] = field(default_factory=dict)
    """By tensor and block, of activation errors at the same."""
    _rounded: tuple[Tensor, dict[int, Tensor]] | None = None
    """The last input and its int8 errors by block, kept because linears that share an input run one after the other."""

    def forward(self, module: nn.Linear, inputs: Tensor, outputs: Tensor) -> None:
        """Record the energies of a linear's tensors."""
        columns = _square_sum(inputs)
        for name in self.setup.names[module]:
            signal = outputs[..., self.setup.loaded.sites[name].rows]
            rounding = {block: _square_sum(self._rounding(module, inputs, block)) for block in self.setup.blocks(name)}
            self.energies[name] = Energies(float(signal.float().square().sum()), columns, rounding)

    def backward(self, module: nn.Linear, inputs: Tensor, gradients: Tensor, lookups: Tensor | None) -> None:
        """Add the squares of a linear's tensors."""
        for name in self.setup.names[module]:
            part = gradients[..., self.setup.loaded.sites[name].rows]
            weight = self.setup.loaded.weight(name).float()
            if name not in self.setup.columns:
                self.setup.columns[name] = self._columns(name, weight)
            _add(self.weight_squares, name, self._weights(name, weight, inputs.float(), part.float(), lookups))
            blocks = self.setup.blocks(name)
            slope = part.float() @ weight if blocks else None
            for block in blocks:
                some = weight[_noise_places(len(weight), slice(0, len(weight))).to(weight.device)]
                noise = self.activation_noise.setdefault((name, block), Noise())
                noise.add(self._rounding(module, inputs, block).flatten(0, -2), some)
                along = torch.linalg.vecdot(slope, self._rounding(module, inputs, block))
                _add(self.activation_squares, (name, block), along.square().sum(-1))

    def squares(self, name: str, index: int, *, int8: bool) -> Tensor:
        """Summed squares of a tensor in one format, float64 ``[rows]``, with or without those of its activations."""
        block = self.setup.block(self.setup.menu[name][index]) if int8 else None
        weights = self.weight_squares[name][index]
        return weights if block is None else weights + self.activation_squares[name, block]

    def sqnr_db(self, name: str, *, int8: bool) -> list[float]:
        """A tensor's signal-to-noise ratio in every format, see `qplan.run.metrics.Metrics`.

        The noise is what independent errors of different input features would make at all output features, times
        what errors as they are make of that at some: error feedback and activations that round to zero correlate them.

        Args:
            name: the tensor.
            int8: whether integer formats have int8 activations.
        """
        energies, columns = self.energies[name], self.setup.columns[name]
        stored = ((columns.errors @ energies.inputs).to("cpu", torch.float64) * self.weight_noise[name].ratio).tolist()
        rounded = {
            block: float(columns.weights @ energy) * float(self.activation_noise[name, block].ratio)
            for block, energy in energies.rounding.items()
        }
        blocks = [self.setup.block(fmt) if int8 else None for fmt in self.setup.menu[name]]
        noise = [part if block is None else part + rounded[block] for part, block in zip(stored, blocks, strict=True)]
        return [_decibel(energies.signal, part) for part in noise]

    def _rounding(self, module: nn.Linear, inputs: Tensor, block: int) -> Tensor:
        if self.setup.activations is None:
            msg = "only int8 activations have a rounding error"
            raise ValueError(msg)
        if self._rounded is None or self._rounded[0] is not inputs:
            self._rounded = inputs, {}
        errors = self._rounded[1]
        if block not in errors:
            routed = isinstance(module, RoutedLinear)
            errors[block] = self.setup.activations.round(inputs.float(), block, routed=routed) - inputs.float()
        return errors[block]

    def _weights(self, name: str, weight: Tensor, inputs: Tensor, gradients: Tensor, lookups: Tensor | None) -> Tensor:
        """Sum over rows ``o`` of ``<M_o, dW_o>^2``: ``[formats, sequences]``."""
        squares = torch.zeros(len(self.setup.menu[name]), len(inputs), device=inputs.device)
        for rows in self._chunks(name, weight, len(inputs)):
            products = gradients[..., rows].transpose(1, 2) @ inputs
            if lookups is not None:
                self._add_lookups(products, lookups, rows)
            errors = self._errors(name, weight, rows)
            some = errors[:, _noise_places(len(weight), rows).to(errors.device) - rows.start]
            self.weight_noise.setdefault(name, Noise()).add(inputs.flatten(0, -2), some)
            # [rows, formats, in] @ [rows, in, sequences]
            along = torch.bmm(errors.transpose(0, 1), products.permute(1, 2, 0))
            squares += along.square_().sum(0)
        return squares

    def _columns(self, name: str, weight: Tensor) -> Columns:
        errors = torch.zeros(len(self.setup.menu[name]), weight.shape[1], device=weight.device)
        for rows in self._chunks(name, weight, 0):
            errors += self._errors(name, weight, rows).square_().sum(1)
        return Columns(_square_sum(weight), errors)

    def _chunks(self, name: str, weight: Tensor, sequences: int) -> Iterator[slice]:
        step = max(1, _CHUNK_ELEMENTS // (weight.shape[1] * (sequences + len(self.setup.menu[name]))))
        for start in range(0, len(weight), step):
            yield slice(start, min(start + step, len(weight)))

    def _errors(self, name: str, weight: Tensor, rows: slice) -> Tensor:
        """Weight errors of storage: float32 ``[formats, rows, in_features]``."""
        formats, exact = self.setup.menu[name], weight[rows]
        errors = torch.empty(len(formats), *exact.shape, device=exact.device)
        for index, fmt in enumerate(formats):
            torch.sub(self.setup.stored.rows(name, fmt, rows), exact, out=errors[index])
        return errors

    def _add_lookups(self, products: Tensor, lookups: Tensor, rows: slice) -> None:
        """Add the gradient of a tied weight's other use, the embedding lookup."""
        for product, slope, ids in zip(products, lookups, self.tokens.to(lookups.device), strict=True):
            here = (ids >= rows.start) & (ids < rows.stop)
            product.index_add_(0, ids[here] - rows.start, slope[here].float())


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _noise_places(features: int, rows: slice) -> Tensor:
    """Those of some rows of ``features`` at which noise is found exactly, int64."""
    few = min(_NOISE_ROWS, features)
    places = torch.arange(few) * features // few
    return places[(places >= rows.start) & (places < rows.stop)]


def _square_sum(values: Tensor) -> Tensor:
    flat = values.float().flatten(0, -2)
    total: Tensor = flat.square().sum(0)
    return total


def _add(sums: dict[_Key, Tensor], key: _Key, value: Tensor) -> None:
    value = value.cpu().to(torch.float64)
    sums[key] = value if key not in sums else sums[key] + value
