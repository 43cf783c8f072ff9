"""The same model in another process: pickled, a `LoadedModel` holds where its files lie and their hash, not weights."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from qplan.errors import StaleArtifactError
from qplan.model.load import LoadedModel, load_model
from qplan.settings import DTypeName


@dataclass(frozen=True)
class ModelPlace:
    """Where a model comes from, and what it must be."""

    folder: str
    """Its files, where all processes see them."""
    source: str
    """What the user called it: a hub id is fetched where the folder is not there."""
    sha256: str
    context: int
    device: str
    dtype: DTypeName
    streamed: bool
    """Whether its weights stay in their files until they are used."""

    @classmethod
    def of(cls, loaded: LoadedModel) -> ModelPlace:
        """The place of a loaded model."""
        dtype = cast("DTypeName", str(loaded.dtype).removeprefix("torch."))
        card, device = loaded.card, str(loaded.device)
        return cls(str(loaded.folder), card.source, card.sha256, card.context, device, dtype, loaded.streamed)


_OPEN: dict[ModelPlace, LoadedModel] = {}
"""The model of this process: one, since it may fill the memory."""


def reopened(place: ModelPlace) -> LoadedModel:
    """Load a model, unless this process has it.

    Raises:
        InputError: it is not there.
        StaleArtifactError: another model lies there.
    """
    if place not in _OPEN:
        _OPEN.clear()
        source = place.folder if Path(place.folder).is_dir() else place.source
        loaded = load_model(source, device=place.device, dtype=place.dtype, stream=place.streamed)
        if loaded.card.sha256 != place.sha256:
            msg = f"{loaded.folder} holds another model on this worker; give all nodes the same files"
            raise StaleArtifactError(msg)
        named = replace(loaded, card=replace(loaded.card, source=place.source))
        _OPEN[place] = named.within(place.context)
    return _OPEN[place]


def weight_bytes(loaded: LoadedModel) -> int:
    """RAM of a model's weights, a tied one once; of a streamed model, of the largest that is read at a time."""
    read = 4 * max(spec.weights for spec in loaded.card.tensors) if loaded.streamed else 0
    return read + sum(parameter.nbytes for parameter in loaded.model.parameters())


def _reduced(loaded: LoadedModel) -> tuple[Callable[[ModelPlace], LoadedModel], tuple[ModelPlace]]:
    return reopened, (ModelPlace.of(loaded),)


copyreg.pickle(LoadedModel, _reduced)
