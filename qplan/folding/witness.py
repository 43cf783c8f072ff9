"""Evidence that a site's scales are fitted to, taken out of a layer's trace; see `qplan.folding.evidence`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qplan.folding.evidence import Evidence
from qplan.folding.fold import FoldSite
from qplan.model.half_products import half_product
from qplan.model.layerwise import LayerTrace
from qplan.model.load import LoadedModel
from qplan.sensitivity.views import joined


@dataclass(frozen=True)
class Witness:
    """Makes evidence of one site after the other, from the last batches of traces."""

    loaded: LoadedModel
    first: int
    """Number of batches of a trace that are not among them."""
    batches: Sequence[Tensor]
    """Token ids of the others, int64 ``[rows, seq_len]`` each."""
    half: bool = False
    """Whether slopes are products of bfloat16, see `qplan.model.half_products`."""

    def of(self, site: FoldSite, trace: LayerTrace, lookups: Sequence[Tensor] = ()) -> Evidence:
        """The evidence of a site in a trace.

        Args:
            site: the site.
            trace: of its layer, or of the head.
            lookups: where the head is tied, gradients ``[rows, seq_len, hidden]`` at its lookups by batch of the trace.
        """
        reader = self.loaded.linear(site.name)
        inputs = joined(trace.inputs[reader][self.first :]).flatten(0, -2)
        count = len(inputs)
        slope = torch.zeros(count, inputs.shape[1], device=inputs.device)
        rows: dict[str, Tensor] = {}
        for name in site.readers:
            module, own = self.loaded.linear(name), self.loaded.sites[name].rows
            rows[name] = torch.stack([energy[own] for energy in trace.energies[module][self.first :]]).sum(0) / count
            if module in trace.drawn:
                slope += joined(trace.slopes[module][self.first :]).flatten(0, -2)
            else:
                gradients = joined(trace.gradients[module][self.first :])[..., own].flatten(0, -2)
                weight = self.loaded.weight(name).float()
                slope += half_product(gradients, weight).float() if self.half else gradients.float() @ weight
        squares = slope.square_()
        tokens = squares.sum(1)
        evidence = Evidence(site, inputs.to(torch.bfloat16), tokens, squares.mean(0), rows)
        if not evidence.flat:
            evidence.tokens /= tokens.mean()
        if site.tied:
            evidence.lookups = torch.cat(list(lookups[self.first :])).flatten(0, -2).float().square().mean(0)
            ids = torch.cat([batch.flatten() for batch in self.batches])
            counts = torch.bincount(ids, minlength=self.loaded.head.out_features)
            evidence.looked_up = counts.to(evidence.columns) / len(ids)
        return evidence
