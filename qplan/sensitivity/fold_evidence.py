"""What a fold's strength follows from: inputs, slopes of the loss at inputs, outputs and lookups.

One forward and backward pass per batch, see `qplan.sensitivity.backward`. Only inputs are kept token by token, and of
large models only those of some tokens: how large the largest channel of a token is decides the step of its int8
activations. Slopes are kept as their means over tokens and over channels, which makes one draw of labels enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qplan.errors import MeasurementError
from qplan.model.folding import FoldSite
from qplan.model.load import LoadedModel
from qplan.sensitivity.backward import sampled_backward

INPUT_BYTES = 2 << 30
"""Of the inputs of all sites; where all tokens need more, as many of every batch are drawn as fit."""


@dataclass
class Evidence:
    """One site's, over all tokens; squares of slopes are Fisher information per token."""

    site: FoldSite
    inputs: Tensor
    """bfloat16 ``[tokens, in_features]``; of some tokens where `INPUT_BYTES` do not hold all."""
    tokens: Tensor
    """float32 ``[tokens]``, of the same: square slope of the loss at the input, over all channels, next to its mean."""
    columns: Tensor
    """float32 ``[in_features]``: mean square slope of the loss at the input."""
    rows: dict[str, Tensor]
    """By reader, float32 ``[out_features]``: mean square slope at its output."""
    lookups: Tensor | None = None
    """float32 ``[in_features]``: mean square slope at the rows looked up, where the reader is the embedding too."""
    looked_up: Tensor | None = None
    """float32 ``[vocabulary]``: share of tokens."""


def gather_evidence(
    loaded: LoadedModel,
    tokens: Tensor,
    sites: Sequence[FoldSite],
    *,
    batch_size: int = 4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Evidence]:
    """See what goes through the readers of folds; inputs take at most `INPUT_BYTES`.

    Args:
        loaded: the model.
        tokens: int64 ``[rows, seq_len]``.
        sites: of `qplan.model.folding.fold_sites`.
        batch_size: rows per pass.
        seed: of the labels and tokens that are drawn.
        progress: called after each pass.

    Raises:
        MeasurementError: see `sampled_backward`.
    """
    needed = 2 * tokens.numel() * sum(loaded.linear(site.name).in_features for site in sites)
    share = min(1.0, INPUT_BYTES / max(1, needed))
    parts: list[_Pass] = []
    batches = tokens.split(batch_size)
    for index, batch in enumerate(batches):
        part = _Pass(loaded, sites, share, seed + index)
        sampled_backward(loaded, batch, [seed + index], part)
        part.summarise()
        parts.append(part)
        if progress is not None:
            progress(index + 1, len(batches))
    return [_joined(site, parts, tokens) for site in sites]


@dataclass
class _Pass:
    """One batch, see `qplan.sensitivity.backward.Observer`."""

    loaded: LoadedModel
    sites: Sequence[FoldSite]
    share: float
    """Of the tokens whose inputs are kept."""
    seed: int
    """Of their draw."""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """By site."""
    slopes: dict[str, Tensor] = field(default_factory=dict)
    """By site, at the input: readers of one input add up."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """By reader."""
    lookups: Tensor | None = None
    along: dict[str, Tensor] = field(default_factory=dict)
    """By site, ``[kept tokens]``: square slope summed over channels."""
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
                flat = inputs.flatten(0, -2)
                self.inputs[site.name] = flat[self._kept(flat)].to(torch.bfloat16)

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
            self.along[name], self.columns[name] = squares.sum(1)[self._kept(squares)], squares.sum(0)
        self.slopes.clear()

    def _kept(self, rows: Tensor) -> Tensor:
        """Indices of the rows that are kept; the same ones for as many."""
        if self.share == 1:
            return torch.arange(len(rows), device=rows.device)
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
        return drawn[: max(1, int(self.share * len(rows)))].sort().values.to(rows.device)


def _joined(site: FoldSite, parts: Sequence[_Pass], tokens: Tensor) -> Evidence:
    count = tokens.numel()
    along = torch.cat([part.along[site.name] for part in parts])
    if not torch.isfinite(along).all() or not along.any():
        msg = f"the loss has no finite slope at the input of {site.name}; the logits do not depend on it"
        raise MeasurementError(msg)
    # taken out of the parts: inputs of large models do not fit twice
    inputs = torch.cat([part.inputs.pop(site.name) for part in parts])
    columns = torch.stack([part.columns[site.name] for part in parts]).sum(0) / count
    rows = {name: torch.stack([part.rows[name] for part in parts]).sum(0) / count for name in site.readers}
    found = Evidence(site, inputs, along / along.mean(), columns, rows)
    if site.tied:
        found.lookups = torch.stack([part.lookups for part in parts if part.lookups is not None]).sum(0) / count
        found.looked_up = torch.bincount(tokens.flatten(), minlength=len(rows[site.name])).to(columns) / count
    return found
