"""Ways to choose fold scales, each as scales by site from the same evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from qplan.folding.evidence import Evidence
from qplan.folding.fit import expected_loss, fit_scales, root_mean_square_scales, smooth_scales
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.settings import Memory

Scales = dict[str, Tensor]
Plans = Sequence[dict[str, QuantFormat]]

MEMORIES: tuple[Memory, ...] = ("low", "normal")

_GRID = tuple(step / 10 for step in range(1, 10))


def root(evidence: Sequence[Evidence]) -> Scales:
    """The square root of the channels' root mean square."""
    return {found.site.name: root_mean_square_scales(found, 0.5) for found in evidence}


def smoothquant(evidence: Sequence[Evidence], loaded: LoadedModel, plans: Plans, alpha: float) -> Scales:
    """SmoothQuant with one strength for all sites."""
    del plans
    return {found.site.name: smooth_scales(found, loaded, alpha) for found in evidence}


def smoothquant_grid(evidence: Sequence[Evidence], loaded: LoadedModel, plans: Plans) -> Scales:
    """SmoothQuant with the strength that has the least expected loss at each site."""
    return {
        found.site.name: _best(found, loaded, plans, ("low",), (smooth_scales(found, loaded, alpha) for alpha in _GRID))
        for found in evidence
    }


def awq(evidence: Sequence[Evidence], loaded: LoadedModel, plans: Plans) -> Scales:
    """AWQ: for each site a power of the channels' size, chosen by the weights' expected loss alone."""
    return {
        found.site.name: _best(
            found, loaded, plans, ("normal",), (root_mean_square_scales(found, alpha) for alpha in (0.0, *_GRID, 1.0))
        )
        for found in evidence
    }


def fitted(
    evidence: Sequence[Evidence],
    loaded: LoadedModel,
    plans: Plans,
    progress: Callable[[str], None],
) -> Scales:
    """The scales that ``qplan analyze`` fits."""
    ones = [expected_loss(found, loaded, torch.ones(found.site.channels), plans, MEMORIES) for found in evidence]
    totals = torch.stack(ones).sum(0)
    scales = {}
    for found in evidence:
        scales[found.site.name] = fit_scales(found, loaded, plans, totals, MEMORIES)
        progress(found.site.name)
    return scales


def _best(
    evidence: Evidence, loaded: LoadedModel, plans: Plans, memories: Sequence[Memory], candidates: Iterable[Tensor]
) -> Tensor:
    """The candidate with the least mean log loss over plans."""

    def loss(scale: Tensor) -> float:
        return float(expected_loss(evidence, loaded, scale, plans, memories).log().sum())

    return min(candidates, key=loss)
