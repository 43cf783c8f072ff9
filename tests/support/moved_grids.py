"""Scales, zeros, norms and biases that are moved at random, as training moves them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.rounding import IntTensor
from qplan.rounding.rounder import Rounder
from qplan.tuning.trained import TrainedGrid, TrainedVector


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


def moved_vectors(loaded: LoadedModel, names: Iterable[str], generator: torch.Generator) -> dict[str, TrainedVector]:
    """Norms and biases of a model, moved by an eighth of what they are."""
    vectors = {name: TrainedVector.of(loaded, name) for name in names}
    with torch.no_grad():
        for vector in vectors.values():
            vector.moved.copy_(torch.randn(vector.moved.shape, generator=generator) / 8)
    return vectors


def names_of_vectors(loaded: LoadedModel) -> list[str]:
    """Every norm and bias, but for experts'."""
    return [name for name, value in loaded.model.named_parameters() if value.dim() == 1 and ".experts." not in name]
