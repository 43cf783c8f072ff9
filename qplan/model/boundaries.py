"""What lies between layers, of every batch: on disk, so that memory holds one batch of it and a killed run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qplan.run.safetensors_file import SafetensorsFile, write_safetensors

_SLOPES = "slopes"


@dataclass
class Boundaries:
    """What layers returned, and the gradients there, by layer and batch."""

    folder: Path | None = None
    """Where to keep them; None for memory."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device that they are wanted on."""
    _held: dict[str, Any] = field(default_factory=dict)

    def put(self, layer: int, batch: int, output: Any) -> None:  # noqa: ANN401 - layers differ
        """Keep what a layer returned: a tensor, or a tuple of tensors and None."""
        self._put(_name(layer, batch), output)

    def get(self, layer: int, batch: int) -> Any:  # noqa: ANN401 - layers differ
        """What was kept."""
        return self._get(_name(layer, batch))

    def has(self, layer: int, batches: Iterable[int]) -> bool:
        """Whether it was kept of all these batches."""
        return all(self._has(_name(layer, batch)) for batch in batches)

    def drop(self, layer: int, batches: Iterable[int]) -> None:
        """Forget what a layer returned of some batches."""
        for batch in batches:
            self._drop(_name(layer, batch))

    def put_slopes(self, layer: int, slopes: Sequence[Tensor]) -> None:
        """Keep the gradients at what a layer was given, of every batch, in place of those of the layer behind it."""
        self._put(f"{_SLOPES}-{layer}", tuple(slopes))
        self._drop(f"{_SLOPES}-{layer + 1}")

    def slopes(self, layer: int) -> list[Tensor]:
        """What was kept of them."""
        return list(self._get(f"{_SLOPES}-{layer}"))

    def reached(self, layers: int) -> int | None:
        """The first layer whose slopes are kept, of so many and the head; None if there are none."""
        return next((layer for layer in range(layers + 1) if self._has(f"{_SLOPES}-{layer}")), None)

    def _put(self, name: str, value: Any) -> None:  # noqa: ANN401
        if self.folder is None:
            self._held[name] = value
            return
        # names say whether it was a tuple, how long, and what place each tensor has in it
        places = {"whole": value} if isinstance(value, Tensor) else dict(_places(value))
        arrays = {place: tensor.detach().cpu().numpy() for place, tensor in places.items()}
        write_safetensors(self._path(name), arrays)

    def _get(self, name: str) -> Any:  # noqa: ANN401
        if self.folder is None:
            return self._held[name]
        file = SafetensorsFile(self._path(name))
        file.check()
        found = {place: torch.from_numpy(file.read(place)).to(self.device) for place in file.shapes}
        if "whole" in found:
            return found["whole"]
        length = int(next(iter(found)).partition(" of ")[2])
        return tuple(found.get(f"{index} of {length}") for index in range(length))

    def _has(self, name: str) -> bool:
        return name in self._held if self.folder is None else self._path(name).is_file()

    def _drop(self, name: str) -> None:
        if self.folder is None:
            self._held.pop(name, None)
        else:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return (self.folder or Path()) / f"{name}.safetensors"


def _places(values: Sequence[Tensor | None]) -> Iterable[tuple[str, Tensor]]:
    for index, value in enumerate(values):
        if value is not None:
            yield f"{index} of {len(values)}", value


def _name(layer: int, batch: int) -> str:
    return f"layer-{layer}-{batch}"
