"""Fits the integers of a plan layer by layer, in the order in which they run, to the float model's outputs.

Each linear's inputs are those that the layers before it make with the integers that they got, under memory low with the
engine's int8 activations too, and its target corrects what these lose (`qplan.rounding.corrected`). What lies between
two layers is on disk, and every tensor is kept once it is fitted: a run that was killed goes on where it was, with the
same integers. Where it is asked for, a layer's integers and scales are then trained together
(`qplan.tuning.layer_training`), before the next layer is fitted to what it makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from qplan.artifact import remove_folder
from qplan.cost.training import FIT_ROWS, restarts
from qplan.formats import QuantFormat
from qplan.model.boundaries import Boundaries
from qplan.model.layerwise import WayThere, hidden_of, names_by_linear, run_layer, with_layer_read
from qplan.model.mixture import RoutedLinear
from qplan.rounding import IntTensor
from qplan.rounding.corrected import CorrectedTarget, PairedSums
from qplan.rounding.rounder import Rounder, one_thread
from qplan.rounding.stored import StoredTensor, joined, row_pieces
from qplan.rounding.stored_cache import FittedTensors, StoredCache
from qplan.sensitivity.joint import Variant, formats_of_layer
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats
from qplan.settings import Progress
from qplan.tensors import Role
from qplan.tuning.inputs import in_order, input_of
from qplan.tuning.layer_training import Example, LayerTraining
from qplan.tuning.trained import TrainedGrid, TrainedWeights, integers

_Block = int | None
"""Features that share a scale of int8 activations, 0 for all; None for float activations."""


@dataclass(frozen=True)
class SequentialFit:
    """A plan whose integers are fitted in order."""

    rounder: Rounder
    """Today's integers: of what is not fitted, and of a tied head's lookups. Its moments are of ``tokens``."""
    plan: Variant
    """Formats of all tensors, and the arithmetic that makes the inputs."""
    tokens: Tensor
    """int64 ``[rows, seq_len]``."""
    cache: StoredCache
    """Keeps what is fitted."""
    between: Path | None = None
    """Folder for what lies between layers; None for memory."""
    batch_size: int = FIT_ROWS
    trains: bool = False
    """Whether each layer is trained, once its integers are fitted."""
    _exact: WayThere = field(init=False)
    """The float model, on its way through the layers."""
    _stored: WayThere = field(init=False)
    """The quantized one."""
    _open: set[str] = field(default_factory=set, init=False)
    """Tensors that are being fitted."""
    _held: dict[str, IntTensor] = field(default_factory=dict, init=False)
    """Those of them that wait for their layer to be trained."""

    def __post_init__(self) -> None:
        """Begin, or go on."""
        for name in ("exact", "stored"):
            folder = None if self.between is None else self.between / name
            kept = Boundaries(folder, self.rounder.loaded.device)
            way = WayThere(self.rounder.loaded, self.tokens.split(self.batch_size), between=kept)
            object.__setattr__(self, f"_{name}", way)

    @cached_property
    def formats(self) -> dict[str, QuantFormat]:
        """Of the tensors that are fitted: of integers, read by every token, and reached by enough of them."""
        starved, loaded = self.rounder.starved, self.rounder.loaded
        return {
            spec.name: self.plan.formats[spec.name]
            for spec in loaded.card.tensors
            if spec.name in self.plan.formats
            and not (self.plan.formats[spec.name].is_float or spec.name in starved)
            and not isinstance(loaded.linear(spec.name), RoutedLinear)
        }

    def shipped(self, *, head: bool) -> dict[str, QuantFormat]:
        """`formats`, with the head's or without."""
        own = self.rounder.loaded.architecture.head
        return {name: fmt for name, fmt in self.formats.items() if head or name != own}

    def run(self, *, jobs: int = 1, progress: Progress | None = None) -> None:
        """Fit what the cache does not hold, and keep it.

        Args:
            jobs: tensors to fit at a time.
            progress: called after each layer.

        Raises:
            MeasurementError: inputs that are all zero or not finite.
            DamagedArtifactError: what a killed run left was damaged.
        """
        layers = len(self.rounder.loaded.layers)
        with ThreadPoolExecutor(jobs) as pool:
            if self._missing(self.formats):
                self._begin()
                for index in range(min(self._exact.done, self._stored.done), layers):
                    self._layer(index, pool)
                    if progress is not None:
                        progress(index + 1, layers + 1)
                self._head(layers, pool)
        if self.between is not None:
            remove_folder(self.between)
        if progress is not None:
            progress(layers + 1, layers + 1)

    def _begin(self) -> None:
        """Go on only behind layers whose tensors are all there, and what both models returned of every batch."""
        done, everything = min(self._exact.done, self._stored.done), range(len(self._exact.batches))
        there = not done or all(way.between.has(done - 1, everything) for way in (self._exact, self._stored))
        if self.between is None or (there and not any(self._missing(self._of_layer(i)) for i in range(done))):
            return
        remove_folder(self.between)

    def _layer(self, index: int, pool: ThreadPoolExecutor) -> None:
        loaded = self.rounder.loaded
        everything = range(len(self._exact.batches))
        with with_layer_read(loaded, index):
            for number in everything:
                self._exact.run(index, number)
            self._open.update(self._unfinished(self._of_layer(index)))
            if self._open:
                names = {
                    linear: [name for name in members if name in self._open]
                    for linear, members in names_by_linear(loaded, index).items()
                }
                linears = [linear for linear, members in names.items() if members]
                first = self._exact.between.get(index - 1, 0) if index else None
                for together in in_order(loaded, index, self._exact.batches[0], first, linears):
                    self._together(index, together[0], [name for linear in together for name in names[linear]], pool)
            if self._held:
                self._train(index)
            self._open.clear()
            with self._quantized(index, self._stored_weights()):
                for number in everything:
                    self._stored.run(index, number)

    def _train(self, index: int) -> None:
        """Train what was fitted of a layer, and keep it."""
        loaded = self.rounder.loaded
        grids: dict[str, TrainedGrid] = {name: TrainedGrid(stored) for name, stored in self._held.items()}
        weights = TrainedWeights(loaded, self._stored_weights().rounder, grids=grids)

        def example(number: int) -> Example:
            given = self._stored.between.get(index - 1, number) if index else None

            def run() -> Tensor:
                with self._quantized(index, weights):
                    return hidden_of(run_layer(loaded, index, self._exact.batches[number], given))

            return Example(run, hidden_of(self._exact.between.get(index, number)))

        batches = [partial(example, number) for number in range(len(self._exact.batches))]
        LayerTraining(grids, batches, self._exact.batches[0].numel(), index).run()
        for name, grid in grids.items():
            self.cache.get(name, self.formats[name], grid.stored, slice(0))
        self._held.clear()

    def _head(self, layers: int, pool: ThreadPoolExecutor) -> None:
        """Fit the head, the last. Where it is tied, its lookups count as they do in its moments."""
        loaded = self.rounder.loaded
        head = loaded.architecture.head
        if self._missing({name: fmt for name, fmt in self.formats.items() if name == head}):
            with with_layer_read(loaded, layers):
                self._together(layers, loaded.head, [head], pool)

    def _together(self, index: int, linear: nn.Linear, names: Sequence[str], pool: ThreadPoolExecutor) -> None:
        """Fit tensors that are given the same input, that of a linear."""
        card = self.rounder.loaded.card
        # an MLP beside attention reads its input, so tokens count by each tensor's own role
        kinds = {name: (self._block(self.formats[name]), card.tensor(name).role is Role.MLP) for name in names}
        sums = {kind: PairedSums(linear.in_features) for kind in dict.fromkeys(kinds.values())}
        tied = index == len(self.rounder.loaded.layers) and card.tensor(names[0]).tied
        exact = PairedSums(linear.in_features) if tied else None
        weighed = any(weighs for _, weighs in sums)
        for number, (given, seen) in enumerate(self._inputs(index, linear)):
            weights = self._weights(index, number) if weighed else None
            for (block, weighs), total in sums.items():
                rounded = seen if block is None else self.plan.activations.round(seen, block)
                total.add(given, rounded, weights if weighs else None)
            if exact is not None:
                exact.add(given, given)
        lookups = None if exact is None else self._lookups(names[0], exact)
        targets = {kind: sums.pop(kind).target(lookups) for kind in tuple(sums)}
        with one_thread():
            list(pool.map(lambda name: self._fit(name, targets[kinds[name]]), names))

    def _weights(self, index: int, number: int) -> Tensor:
        """How much each token of a batch counts in an MLP, ``[rows, seq_len]``: one over the size of its hidden state.

        Norms divide by that size what comes behind. A few tokens, the first in a row above all, have states hundreds of
        times as large as all others (massive activations, Sun et al., arXiv 2402.17762), and by their squares they
        alone would be fitted; by relative errors they would count for nothing.
        """
        size = hidden_of(self._exact.between.get(index, number)).to(torch.float64).square().mean(-1).sqrt()
        return torch.where(size > 0, 1 / size, 0)

    def _inputs(self, index: int, linear: nn.Linear) -> Iterator[tuple[Tensor, Tensor]]:
        """A linear's inputs in the float model and in the quantized one, batch by batch."""
        loaded, weights = self.rounder.loaded, self._stored_weights()
        for number, batch in enumerate(self._exact.batches):
            exact, stored = (
                way.between.get(index - 1, number) if index else None for way in (self._exact, self._stored)
            )
            with self._quantized(index, weights):
                seen = input_of(loaded, index, batch, stored, linear)
            yield input_of(loaded, index, batch, exact, linear), seen

    def _quantized(self, index: int, weights: StoredWeights) -> AbstractContextManager[None]:
        """Compute a layer as it will ship, as far as it is fitted."""
        formats = formats_of_layer(self.rounder.loaded, self.plan.formats, index)
        return apply_formats(
            self.rounder.loaded,
            formats,
            self.plan.memory,
            self.plan.activations,
            stored=weights,
            engine_embedding=index == 0,
        )

    def _stored_weights(self) -> StoredWeights:
        """Integers that are fitted by now, but for the head's, which may be looked up in the first layer."""
        loaded = self.rounder.loaded
        done = {
            name: fmt
            for name, fmt in self.formats.items()
            if name != loaded.architecture.head
            and (name in self._held if self.trains and name in self._open else self.cache.is_whole(name, fmt))
        }
        return StoredWeights(loaded, replace(self.rounder, fitted=FittedTensors(self.cache, done, self._held)))

    def _lookups(self, head: str, exact: PairedSums) -> Tensor:
        """Moments of the gradients at a tied head's lookups: what its own moments hold beside those of its inputs."""
        if self.rounder.moments is None:
            msg = "a tied head's lookups are weighed by its moments"
            raise TypeError(msg)
        return self.rounder.moments.of(head) - exact.target().curvature.moments

    def _fit(self, name: str, target: CorrectedTarget) -> None:
        spec, fmt, loaded = self.rounder.loaded.card.tensor(name), self.formats[name], self.rounder.loaded

        def store() -> StoredTensor:
            pieces = row_pieces(spec.out_features, spec.in_features)
            again = restarts(spec.in_features, self.tokens.numel(), layers=self.trains)
            return joined([target.store(loaded.weight(name, rows), fmt, restarts=again) for rows in pieces])

        if self.trains and name in self._open:
            self._held[name] = integers(name, store())
        else:
            self.cache.get(name, fmt, store, slice(0))

    def _block(self, fmt: QuantFormat) -> _Block:
        return self.plan.activations.block(fmt) if self.plan.memory == "low" else None

    def _of_layer(self, index: int) -> dict[str, QuantFormat]:
        """Formats of a layer's tensors that are fitted; those of the head come last, whatever it is tied to."""
        card = self.rounder.loaded.card
        return {name: fmt for name, fmt in self.formats.items() if card.tensor(name).layer == index}

    def _unfinished(self, formats: Mapping[str, QuantFormat]) -> dict[str, QuantFormat]:
        """What is to be fitted of a layer: it is trained as a whole, so all of it where anything is missing."""
        missing = self._missing(formats)
        return dict(formats) if missing and self.trains else missing

    def _missing(self, formats: Mapping[str, QuantFormat]) -> dict[str, QuantFormat]:
        return {name: fmt for name, fmt in formats.items() if not self.cache.is_whole(name, fmt)}
