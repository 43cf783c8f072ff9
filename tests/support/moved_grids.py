"""Scales and zeros that are moved at random, as training moves them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qplan.formats import QuantFormat
from qplan.rounding import IntTensor
from qplan.rounding.rounder import Rounder
from qplan.tuning.trained import TrainedGrid


def moved_grids(
    rounder: Rounder, formats: Mapping[str, QuantFormat], generator: torch.Generator
) -> dict[str, TrainedGrid]:
    """Every tensor as a rounder stores it, with its grid moved by an eighth of a step or so."""
    grids = {}
    for name, fmt in formats.items():
        stored = rounder.store(name, fmt)
        assert isinstance(stored, IntTensor)
        grids[name] = TrainedGrid(stored)
        with torch.no_grad():
            for value in grids[name].parameters.values():
                value.copy_(torch.randn(value.shape, generator=generator) / 8)
    return grids
