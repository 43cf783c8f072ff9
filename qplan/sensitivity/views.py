"""What each tensor of a layer saw, taken out of a layer's trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from qplan.formats import QuantFormat
from qplan.model.half_products import half_product
from qplan.model.layerwise import LayerTrace
from qplan.model.load import LoadedModel
from qplan.model.mixture import RoutedLinear
from qplan.rounding.gram import gram
from qplan.sensitivity.rows import RowSample
from qplan.sensitivity.seen import Seen

_ROUGH = QuantFormat(4)
"""Format, by the ranges of whose blocks it is known roughly which output features will lose most in any format."""

HEAD_SHARE = 4
"""How many times as many output features of the head are drawn: a vocabulary is large and its tokens differ most."""

_UNSEEN = 0.1
"""Tokens of the vocabulary count as seen at least this often."""


@dataclass(frozen=True)
class Views:
    """Makes `Seen` of the tensors of one layer after the other."""

    loaded: LoadedModel
    batches: Sequence[Tensor]
    """Tokens that losses are estimated on, int64 ``[rows, seq_len]`` each: the first batches of a trace."""
    drawn: int
    """Output features to draw of every tensor."""
    seed: int
    judged: bool = True
    """Whether rounding chooses by the second moments of these tokens' inputs, so that they are needed."""
    half: bool = False
    """Whether slopes are products of bfloat16, see `qplan.model.half_products`."""
    head_sample: RowSample = field(init=False)
    """The drawn rows of the head, drawn before anything is known of its gradients: these are too many to keep."""

    def __post_init__(self) -> None:
        """Draw rows of the head, by how often their tokens occur and how large they are."""
        head = self.loaded.head
        counts = torch.bincount(torch.cat([batch.flatten() for batch in self.batches]), minlength=head.out_features)
        sizes = torch.linalg.vector_norm(head.weight.float(), dim=1).square()
        rough = (counts.to(sizes) + _UNSEEN) * sizes
        sample = RowSample.draw(rough, HEAD_SHARE * self.drawn, self.seed)
        object.__setattr__(self, "head_sample", sample)

    @property
    def drawn_of(self) -> dict[nn.Linear, Tensor]:
        """Linears that gradients are kept of at some outputs only, and which."""
        return {self.loaded.head: self.head_sample.rows.to(self.loaded.device)}

    def of(self, trace: LayerTrace, lookups: Sequence[Tensor] = ()) -> Iterator[Seen]:
        """What the tensors of a trace saw, in order of execution; those with the same input share its tensor.

        Args:
            trace: of a layer, or of the head.
            lookups: where the trace is a tied head's, gradients ``[rows, seq_len, hidden]`` at its lookups by batch.
        """
        count = len(self.batches)
        shared: dict[int, tuple[Tensor, Tensor | None]] = {}
        for spec in self.loaded.card.tensors:
            module = self.loaded.linear(spec.name)
            if module not in trace.inputs:
                continue
            first = trace.inputs[module][0]
            if id(first) not in shared:
                inputs = joined(trace.inputs[module][:count]).float()
                flat = inputs.flatten(0, -2)
                shared[id(first)] = inputs, gram(flat) / max(1, int(flat.any(1).sum())) if self.judged else None
            yield self._seen(spec.name, trace, *shared[id(first)], lookups[:count])

    def _seen(
        self, name: str, trace: LayerTrace, inputs: Tensor, judge: Tensor | None, lookups: Sequence[Tensor]
    ) -> Seen:
        module = self.loaded.linear(name)
        rows, count = self.loaded.sites[name].rows, len(self.batches)
        weight = self.loaded.weight(name).float()
        gradients = joined(trace.gradients[module][:count]).float()
        coarse = _rough_errors(weight, inputs.flatten(0, -2).square().sum(0) if judge is None else judge.diagonal())
        if module in trace.drawn:
            sample, slopes = self.head_sample, joined(trace.slopes[module][:count]).float()
        else:
            importance = torch.stack([energy[rows] for energy in trace.energies[module][:count]]).sum(0)
            sample = RowSample.draw(importance * coarse, self.drawn, self.seed)
            own = gradients[..., rows]
            slopes = half_product(own, weight) if self.half else own @ weight
            gradients = own[..., sample.rows.to(own.device)]
        looked_up = None
        if lookups:
            flat = torch.cat(list(lookups)).flatten(0, -2).float()
            judge = None if judge is None else judge + gram(flat) / len(flat)
            looked_up = self._looked_up(sample, lookups)
        return Seen(
            name=name,
            weight=weight[sample.rows.to(weight.device)],
            columns=weight.square().sum(0),
            inputs=inputs,
            gradients=gradients,
            slopes=slopes,
            signal=float(sum(signal[rows].sum() for signal in trace.signals[module][:count])),
            sample=sample,
            coarseness=coarse[sample.rows.to(coarse.device)].to("cpu", torch.float64),
            coarseness_total=float(coarse.sum(dtype=torch.float64)),
            judge=judge,
            lookups=looked_up,
            routed=isinstance(module, RoutedLinear),
            layer_peak=trace.peak,
        )

    def _looked_up(self, sample: RowSample, lookups: Sequence[Tensor]) -> Tensor:
        """Gradients at drawn rows of the embedding, ``[rows, drawn, hidden]``."""
        device = lookups[0].device
        place = torch.full((self.loaded.head.out_features,), -1)
        place[sample.rows] = torch.arange(len(sample.rows))
        parts = []
        for batch, slopes in zip(self.batches, lookups, strict=True):
            for ids, slope in zip(batch, slopes, strict=True):
                where = place[ids]
                here = where >= 0
                part = torch.zeros(len(sample.rows), slope.shape[-1], device=device)
                parts.append(part.index_add_(0, where[here].to(device), slope[here.to(device)].float()))
        return torch.stack(parts)


def _rough_errors(weight: Tensor, met: Tensor) -> Tensor:
    """Squared errors ``[out]`` that rows of ``weight [out, in]`` get from the steps of their blocks, up to a factor.

    Args:
        weight: the rows.
        met: ``[in]``, mean squares of the inputs, up to a factor.
    """
    size = _ROUGH.resolve(weight.shape[1]).block_size(weight.shape[1])
    blocks = weight.view(len(weight), -1, size)
    return (blocks.amax(2) - blocks.amin(2)).square() @ met.view(-1, size).sum(1)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Batches ``[rows, tokens, features]`` as one; those of experts differ in tokens and are padded with zeros."""
    tokens = max(part.shape[1] for part in parts)
    return torch.cat([functional.pad(part, (0, 0, 0, tokens - part.shape[1])) for part in parts])
