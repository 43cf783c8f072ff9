"""Second moments as tasks for other processes: first every batch passes all layers, then each layer sees all batches.

What lies between layers stays with the workers until a layer's task asks for it. A layer's sums are made by one task,
batch by batch as in `qplan.rounding.moments`, so that they come out the same to the last bit; it writes its matrices,
and the process that started all writes the index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qplan.model.layerwise import WayThere, names_by_linear, run_layer
from qplan.model.load import LoadedModel
from qplan.model.reopened import weight_bytes
from qplan.rounding.moments import LayerSums, Moments, without_logits
from qplan.settings import Progress
from qplan.spread.held import Held, value_of
from qplan.spread.work import Task, Workers

_COPIES = 8
"""Copies of a batch's hidden states, or of a matrix of moments in float32, that a pass or a sum takes."""


@dataclass(frozen=True)
class PassLayers:
    """Passes a batch through all layers; returns what each decoder layer returned."""

    loaded: LoadedModel
    tokens: int
    """In a batch."""
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def memory_bytes(self) -> int:
        """RAM of a process: the model, and what lies between its layers."""
        hidden = 4 * self.tokens * self.loaded.head.in_features
        return weight_bytes(self.loaded) + hidden * (len(self.loaded.layers) + _COPIES)

    def open(self) -> Callable[[Tensor], list[Any]]:
        """Takes token ids, int64 ``[rows, seq_len]``."""

        def run(batch: Tensor) -> list[Any]:
            way = WayThere(self.loaded, [batch], kept=1)
            for index in range(len(self.loaded.layers)):
                way.run(index, 0)
            return [way.between.get(index, 0) for index in range(len(self.loaded.layers))]

        return run


@dataclass(frozen=True)
class GatherLayer:
    """Sums the inputs of one layer's linears, or the head's, over all batches, and writes their moments."""

    loaded: LoadedModel
    tokens: Tensor
    """int64 ``[rows, seq_len]``."""
    batch_size: int
    folder: Path
    """Where matrices are written, each to a file of its own."""
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def memory_bytes(self) -> int:
        """RAM of a process: the model, one layer's sums and one batch's hidden states."""
        widths = [{spec.in_features for spec in self.loaded.card.tensors if spec.layer == layer} for layer in (0, None)]
        matrices = max(sum(4 * _COPIES * width**2 for width in layer) for layer in widths)
        hidden = 4 * _COPIES * self.batch_size * self.tokens.shape[1] * max(map(max, widths))
        return weight_bytes(self.loaded) + matrices + hidden

    def open(self) -> Callable[[tuple[int, Sequence[Held]]], tuple[dict[str, str], dict[str, int]]]:
        """Takes a layer and what the layer before it returned of each batch.

        Returns which matrix is whose, and how many tokens reached each tensor.
        """
        batches = self.tokens.split(self.batch_size)

        def run(item: tuple[int, Sequence[Held]]) -> tuple[dict[str, str], dict[str, int]]:
            index, given = item
            sums = LayerSums(names_by_linear(self.loaded, index))

            def see(number: int) -> None:
                before = value_of(given[number]) if given else None
                with torch.no_grad():
                    run_layer(self.loaded, index, batches[number], before)

            with without_logits(self.loaded):
                sums.see_all(partial(see, number) for number in range(len(batches)))
            sums.finish(self.loaded, self.tokens, self.batch_size)
            sums.write(self.folder)
            return sums.key_of, sums.tokens()

        return run


def gather_by(
    workers: Workers,
    loaded: LoadedModel,
    tokens: Tensor,
    folder: Path,
    *,
    inputs: dict[str, str],
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Moments:
    """Like `qplan.rounding.moments.gather_moments`, by the workers of a cluster; progress is told by the layer.

    Raises:
        MeasurementError: an input that is not finite.
    """
    batches = tokens.split(batch_size)
    count = len(loaded.layers)
    there = [Task(batch, f"batch {number}") for number, batch in enumerate(batches)]
    between = workers.run_held(PassLayers(loaded, batches[0].numel()), there, count)
    layers: list[Task[tuple[int, Sequence[Held]]]] = [Task((0, ()), "layer 0")]
    layers += [Task((index, [of[index - 1] for of in between]), f"layer {index}") for index in range(1, count)]
    layers.append(Task((count, [of[-1] for of in between]), "the head"))
    key_of: dict[str, str] = {}
    reached: dict[str, int] = {}
    for done, (_, (keys, counts)) in enumerate(workers.run(GatherLayer(loaded, tokens, batch_size, folder), layers), 1):
        key_of |= keys
        reached |= counts
        if progress is not None:
            progress(done, len(layers))
    order = [spec.name for spec in loaded.card.tensors]
    found = Moments(
        folder,
        {name: key_of[name] for name in order if name in key_of},
        {name: reached[name] for name in order if name in reached},
    )
    found.write_index(inputs)
    return found
