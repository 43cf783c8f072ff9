"""What a fold's strength follows from: inputs, slopes of the loss at inputs, outputs and lookups.

One forward and backward pass per batch, see `qplan.sensitivity.backward`. Only inputs are kept token by token: how
large the largest channel of a token is decides the step of its int8 activations. Slopes are kept as their means over
tokens and over channels, which makes one draw of labels enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qplan.errors import MeasurementError
from qplan.model.folding import FoldSite
from qplan.model.load import LoadedModel
from qplan.sensitivity.backward import sampled_backward

PASS_BYTES = 2 << 30
"""Inputs gathered in one pass over the tokens; a model with more takes several passes."""


@dataclass
class Evidence:
    """One site's, over all tokens; squares of slopes are Fisher information per token."""

    site: FoldSite
    inputs: Tensor
    """bfloat16 ``[tokens, in_features]``."""
    tokens: Tensor
    """float32 ``[tokens]``: square slope of the loss at the input, summed over channels, next to its mean."""
    columns: Tensor
    """float32 ``[in_features]``: mean square slope of the loss at the input."""
    rows: dict[str, Tensor]
    """By reader, float32 ``[out_features]``: mean square slope at its output."""
    lookups: Tensor | None = None
    """float32 ``[in_features]``: mean square slope at the rows looked up, where the reader is the embedding too."""
    looked_up: Tensor | None = None
    """float32 ``[vocabulary]``: share of tokens."""


def gather_evidence(
    loaded: LoadedModel, tokens: Tensor, sites: Sequence[FoldSite], *, batch_size: int = 4, seed: int = 0
) -> Iterator[Evidence]:
    """See what goes through the readers of folds; one pass' evidence, at most `PASS_BYTES`, is in memory at a time.

    Args:
        loaded: the model.
        tokens: int64 ``[rows, seq_len]``.
        sites: of `qplan.model.folding.fold_sites`.
        batch_size: rows per pass.
        seed: of the labels that are drawn.

    Raises:
        MeasurementError: see `sampled_backward`.
    """
    for chunk in _chunks(loaded, sites, tokens.numel()):
        parts = [_Pass(loaded, chunk) for _ in tokens.split(batch_size)]
        for index, (batch, part) in enumerate(zip(tokens.split(batch_size), parts, strict=True)):
            sampled_backward(loaded, batch, [seed + index], part)
            part.summarise()
        for site in chunk:
            yield _joined(site, parts, tokens)


@dataclass
class _Pass:
    """One batch, see `qplan.sensitivity.backward.Observer`."""

    loaded: LoadedModel
    sites: Sequence[FoldSite]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """By site."""
    slopes: dict[str, Tensor] = field(default_factory=dict)
    """By site, at the input: readers of one input add up."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """By reader."""
    lookups: Tensor | None = None
    along: dict[str, Tensor] = field(default_factory=dict)
    """By site, ``[tokens]``: square slope summed over channels."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """By site, ``[in_features]``: square slope summed over tokens."""
    _readers: dict[nn.Linear, list[tuple[str, FoldSite]]] = field(init=False)

    def __post_init__(self) -> None:
        """Find the readers."""
        self._readers = {}
        for site in self.sites:
            for name in site.readers:
                self._readers.setdefault(self.loaded.linear(name), []).append((name, site))

    def forward(self, module: nn.Linear, inputs: Tensor, outputs: Tensor) -> None:  # noqa: ARG002 - a protocol
        """Keep the input."""
        for _, site in self._readers.get(module, ()):
            if site.name not in self.inputs:
                self.inputs[site.name] = inputs.flatten(0, -2).to(torch.bfloat16)

    def backward(self, module: nn.Linear, inputs: Tensor, gradients: Tensor, lookups: Tensor | None) -> None:  # noqa: ARG002
        """Add slopes up."""
        flat = gradients.flatten(0, -2).float()
        for name, site in self._readers.get(module, ()):
            part = flat[:, self.loaded.sites[name].rows]
            self.rows[name] = part.square().sum(0)
            slope = part @ self.loaded.weight(name).float()
            self.slopes[site.name] = slope if site.name not in self.slopes else self.slopes[site.name] + slope
            if lookups is not None:
                self.lookups = lookups.flatten(0, -2).float().square().sum(0)

    def summarise(self) -> None:
        """Square the slopes, all readers having been seen, and keep their sums."""
        for name, slope in self.slopes.items():
            squares = slope.square()
            self.along[name], self.columns[name] = squares.sum(1), squares.sum(0)
        self.slopes.clear()


def passes(loaded: LoadedModel, sites: Sequence[FoldSite], tokens: int) -> int:
    """How many passes over the tokens `gather_evidence` takes."""
    return len(list(_chunks(loaded, sites, tokens)))


def _chunks(loaded: LoadedModel, sites: Sequence[FoldSite], tokens: int) -> Iterator[list[FoldSite]]:
    chunk: list[FoldSite] = []
    size = 0
    for site in sites:
        need = 2 * tokens * loaded.linear(site.name).in_features
        if chunk and size + need > PASS_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(site)
        size += need
    if chunk:
        yield chunk


def _joined(site: FoldSite, parts: Sequence[_Pass], tokens: Tensor) -> Evidence:
    count = tokens.numel()
    along = torch.cat([part.along[site.name] for part in parts])
    if not torch.isfinite(along).all() or not along.any():
        msg = f"the loss has no finite slope at the input of {site.name}; the logits do not depend on it"
        raise MeasurementError(msg)
    inputs = torch.cat([part.inputs[site.name] for part in parts])
    columns = torch.stack([part.columns[site.name] for part in parts]).sum(0) / count
    rows = {name: torch.stack([part.rows[name] for part in parts]).sum(0) / count for name in site.readers}
    found = Evidence(site, inputs, along / along.mean(), columns, rows)
    if site.tied:
        found.lookups = torch.stack([part.lookups for part in parts if part.lookups is not None]).sum(0) / count
        found.looked_up = torch.bincount(tokens.flatten(), minlength=len(rows[site.name])).to(columns) / count
    return found
