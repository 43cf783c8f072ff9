"""Evidence that folds are fitted to: inputs, and slopes of the loss at inputs, outputs and lookups.

Every batch takes one forward and backward pass, see `qplan.model.backward`. Inputs are kept per token, since the
largest channel of a token sets the step of its int8 activations; for large models only some tokens are kept. Slopes
are kept as means over tokens and over channels, for which one draw of labels is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qplan.errors import MeasurementError
from qplan.folding.fold import FoldSite
from qplan.model.backward import sampled_backward
from qplan.model.load import LoadedModel

INPUT_BYTES = 2 << 30
"""Most bytes for the inputs of all sites; if all tokens need more, as many tokens of each batch are drawn as fit."""


@dataclass
class Evidence:
    """Evidence of one site over all tokens. Squared slopes are Fisher information per token."""

    site: FoldSite
    inputs: Tensor
    """Inputs, bfloat16 ``[tokens, in_features]``; only some tokens if `INPUT_BYTES` cannot hold all."""
    tokens: Tensor
    """float32 ``[tokens]``, of the same tokens: square slope at the input over all channels, relative to its mean."""
    columns: Tensor
    """float32 ``[in_features]``: mean square slope of the loss at the input."""
    rows: dict[str, Tensor]
    """Mean square slope at the output of each reader, float32 ``[out_features]``."""
    lookups: Tensor | None = None
    """float32 ``[in_features]``: mean square slope at the rows looked up; None if the reader is not the embedding."""
    looked_up: Tensor | None = None
    """float32 ``[vocabulary]``: share of tokens that look up each row; None if the reader is not the embedding."""

    @property
    def flat(self) -> bool:
        """Whether the loss does not depend on the inputs at all: the readers, or what reads those, are zeros."""
        return not self.tokens.any()


def gather_evidence(
    loaded: LoadedModel,
    tokens: Tensor,
    sites: Sequence[FoldSite],
    *,
    batch_size: int = 4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Evidence]:
    """Run the model and collect evidence for fold sites; inputs take at most `INPUT_BYTES`.

    Args:
        loaded: the model.
        tokens: int64 ``[rows, seq_len]``.
        sites: the sites, from `qplan.folding.fold.fold_sites`.
        batch_size: rows per pass.
        seed: seed for the labels and tokens that are drawn.
        progress: called after each pass.

    Raises:
        MeasurementError: see `sampled_backward`.
    """
    batches = tokens.split(batch_size)
    needed = 2 * tokens.numel() * sum(loaded.linear(site.name).in_features for site in sites)
    kept = [_draw(batch.numel(), INPUT_BYTES / max(1, needed), seed + index) for index, batch in enumerate(batches)]
    # allocated once, before the passes: between the temporary tensors of a pass it would fragment the heap, and that
    # memory would never be given back
    found = [_empty_evidence(loaded, site, sum(map(len, kept))) for site in sites]
    observer = _Observer(loaded, found)
    start = 0
    for index, batch in enumerate(batches):
        observer.begin(kept[index].to(loaded.device), start)
        sampled_backward(loaded, batch, [seed + index], observer)
        observer.end()
        start += len(kept[index])
        if progress is not None:
            progress(index + 1, len(batches))
    for seen in found:
        _average(seen, tokens)
    return found


def _draw(tokens: int, share: float, seed: int) -> Tensor:
    """Indices of the tokens of a batch that are kept."""
    if share >= 1:
        return torch.arange(tokens)
    drawn = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    return drawn[: max(1, int(share * tokens))].sort().values


def _empty_evidence(loaded: LoadedModel, site: FoldSite, kept: int) -> Evidence:
    """Empty evidence for a site, with room for ``kept`` tokens."""
    device, width = loaded.device, loaded.linear(site.name).in_features
    return Evidence(
        site,
        torch.empty(kept, width, dtype=torch.bfloat16, device=device),
        torch.zeros(kept, device=device),
        torch.zeros(width, device=device),
        {name: torch.zeros(len(loaded.weight(name)), device=device) for name in site.readers},
        torch.zeros(width, device=device) if site.tied else None,
    )


class _Observer:
    """Adds to the evidence batch by batch, see `qplan.model.backward.Observer`."""

    def __init__(self, loaded: LoadedModel, evidence: Sequence[Evidence]) -> None:
        self.loaded = loaded
        self.evidence = {seen.site.name: seen for seen in evidence}
        self.readers: dict[nn.Linear, list[tuple[str, Evidence]]] = {}
        for seen in evidence:
            for name in seen.site.readers:
                self.readers.setdefault(loaded.linear(name), []).append((name, seen))

    def begin(self, kept: Tensor, start: int) -> None:
        """Start a batch of which the tokens ``kept`` are stored from position ``start`` on."""
        self.kept, self.places = kept, slice(start, start + len(kept))
        self.slopes: dict[str, Tensor] = {}
        """Slopes at the input by site, summed over readers of the same input."""

    def forward(self, module: nn.Linear, inputs: Tensor, outputs: Tensor) -> None:  # noqa: ARG002 - a protocol
        """Store the input of each site."""
        for name, seen in self.readers.get(module, ()):
            if name == seen.site.name:
                seen.inputs[self.places] = inputs.flatten(0, -2)[self.kept].to(torch.bfloat16)

    def backward(self, module: nn.Linear, inputs: Tensor, gradients: Tensor, lookups: Tensor | None) -> None:  # noqa: ARG002
        """Add the slopes of each reader."""
        flat = gradients.flatten(0, -2).float()
        for name, seen in self.readers.get(module, ()):
            part = flat[:, self.loaded.sites[name].rows]
            seen.rows[name] += part.square().sum(0)
            slope = part @ self.loaded.weight(name).float()
            site = seen.site.name
            self.slopes[site] = slope if site not in self.slopes else self.slopes[site] + slope
            if lookups is not None and seen.lookups is not None:
                seen.lookups += lookups.flatten(0, -2).float().square().sum(0)

    def end(self) -> None:
        """Square the slopes, once all readers were seen."""
        for site, slope in self.slopes.items():
            squares = slope.square()
            self.evidence[site].tokens[self.places] = squares.sum(1)[self.kept]
            self.evidence[site].columns += squares.sum(0)
        self.slopes.clear()


def _average(seen: Evidence, tokens: Tensor) -> None:
    """Turn sums over batches into means over tokens.

    Raises:
        MeasurementError: slopes are not finite.
    """
    site, count = seen.site, tokens.numel()
    if not torch.isfinite(seen.tokens).all():
        msg = f"the loss has no finite slope at the input of {site.name}"
        raise MeasurementError(msg)
    if not seen.flat:
        seen.tokens /= seen.tokens.mean()
    for total in (seen.columns, *seen.rows.values(), *([] if seen.lookups is None else [seen.lookups])):
        total.div_(count)
    if site.tied:
        looked_up = torch.bincount(tokens.flatten(), minlength=len(seen.rows[site.name]))
        seen.looked_up = looked_up.to(seen.columns) / count
