"""Second moments of every linear's inputs, ``X'X / tokens``, by which error-feedback rounding weighs errors.

Gathered in one pass, layer by layer, so that memory is bounded by the moments of one layer and by the hidden states
of all tokens between two layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from qplan.errors import MeasurementError
from qplan.model.backward import sampled_backward
from qplan.model.layerwise import WayThere, names_by_linear, with_layer_read
from qplan.model.load import LoadedModel
from qplan.model.replace import with_forward
from qplan.rounding.gram import add_gram, by_rows, mirrored
from qplan.run.moments import StoredMoments, write_matrix
from qplan.settings import Progress

LOOKUP_TOKENS = 8192
"""At most this many tokens are also run backwards, where the head is tied to the embedding."""


@dataclass(frozen=True)
class Moments(StoredMoments):
    """Moments of one model's inputs, on disk; read one matrix at a time."""

    def of(self, tensor: str) -> Tensor:
        """A tensor's moments, float32 ``[in_features, in_features]``.

        Raises:
            MeasurementError: no token reached the tensor.
        """
        if not self.tokens[tensor]:
            msg = f"{tensor} has no second moments: no calibration token reached it; use --rounding rtn"
            raise MeasurementError(msg)
        return torch.from_numpy(self.read(tensor))

    def add_lookups(self, head: str, lookups: Tensor) -> None:
        """Add ``E[l l']`` to a tied head's moments, of gradients ``l [..., hidden]`` at the embedding's output."""
        rows = lookups.flatten(0, -2).to("cpu", torch.float32)
        write_matrix(self.folder, self.key_of[head], (self.of(head) + rows.T @ rows / len(rows)).numpy())


def gather_moments(
    loaded: LoadedModel,
    tokens: Tensor,
    folder: Path,
    *,
    inputs: dict[str, str],
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Moments:
    """Run tokens through the FP32 model and write the moments of every planned linear's input.

    Linears that are given the same tensor (q, k and v; gate and up) share one matrix. Linears that no token reaches,
    as may happen to experts, have none.

    A head tied to the embedding is used twice: as a matrix on the last hidden states ``x``, and row by row where
    tokens are looked up. An error ``e`` of row o changes the logits by ``e x``, with the Fisher weight
    ``p_o (1 - p_o)``, and the lookups of o, whose Fisher information is that of the gradients ``l`` at the
    embedding's output. A token is predicted about as often as it occurs, so both add up with one weight for all
    rows but the most frequent: the head's moments are ``E[x x'] + E[l l']``.

    Args:
        loaded: the model.
        tokens: int64 ``[rows, seq_len]``.
        folder: where to write one file per matrix.
        inputs: what the moments depend on, kept with them.
        batch_size: rows per pass.
        progress: called after each batch of each layer.

    Raises:
        MeasurementError: an input that is not finite.
    """

    def finish(sums: LayerSums) -> None:
        sums.finish(loaded, tokens, batch_size)

    return _gather(WayThere(loaded, tokens.split(batch_size)), 0, folder, inputs, finish=finish, progress=progress)


def gather_on_the_way(
    way: WayThere, first: int, folder: Path, *, inputs: dict[str, str], progress: Progress | None = None
) -> Moments:
    """The same on a way whose first batches are not counted; `Moments.add_lookups` is left to do.

    A way that was broken off goes on from its last whole layer.

    Args:
        way: the model and its batches.
        first: how many batches are only passed on.
        folder: where to write one file per matrix.
        inputs: what the moments depend on, kept with them.
        progress: called after each batch of each layer.

    Raises:
        MeasurementError: an input that is not finite.
    """
    return _gather(way, first, folder, inputs, progress=progress)


def _part(inputs: Mapping[str, str], layers: int) -> dict[str, str]:
    """What moments depend on of which only those of so many layers are whole."""
    return {**inputs, "layers": str(layers)}


def _gather(
    way: WayThere,
    first: int,
    folder: Path,
    inputs: Mapping[str, str],
    *,
    finish: Callable[[LayerSums], None] | None = None,
    progress: Progress | None,
) -> Moments:
    found = Moments(folder, {}, {})
    start = 0
    for done in range(way.done, 0, -1):
        if (kept := Moments.open(folder, _part(inputs, done))) is not None:
            found, start = kept, done
            break
    for index, sums in _layer_by_layer(way, first, start, progress):
        if finish is not None:
            finish(sums)
        sums.write(folder)
        found = Moments(folder, found.key_of | sums.key_of, found.tokens | sums.tokens())
        found.write_index(_part(inputs, index + 1))
    found.write_index(inputs)
    return found


@dataclass
class LayerSums:
    """Sums over tokens of one layer's inputs."""

    names: dict[nn.Linear, list[str]]
    """Tensors by the linear that holds them."""
    key_of: dict[str, str] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)
    """float64 ``[in, in]`` on the CPU, by key: see `add_gram`."""
    counts: dict[str, int] = field(default_factory=dict)
    _first: dict[int, str] = field(default_factory=dict)
    """Key by identity of the input tensors that were seen in the current batch."""
    _held: list[Tensor] = field(default_factory=list)
    """Those tensors, kept alive: the identity of a freed one could come back as another's."""

    def see_all(self, passes: Iterable[Callable[[], object]]) -> None:
        """See the linears in passes of the layer, one per batch."""
        with ExitStack() as stack:
            for module in self.names:
                stack.callback(module.register_forward_pre_hook(self.see).remove)
            for run in passes:
                self.begin_batch()
                run()

    def write(self, folder: Path) -> None:
        """Write the moments, a file per matrix."""
        for key in self.totals:
            write_matrix(folder, key, self.mean(key).numpy())

    def begin_batch(self) -> None:
        """Forget the tensors of the previous batch."""
        self._first.clear()
        self._held.clear()

    def see(self, module: nn.Linear, args: tuple[Tensor, ...]) -> None:
        """Add a linear's input, unless a linear before it in the batch was given the same."""
        name, value = self.names[module][0], args[0]
        shared = self._first.setdefault(id(value), self.key_of.get(name, name))
        self._held.append(value)
        if name not in self.key_of:
            self.key_of |= dict.fromkeys(self.names[module], shared)
        if shared != name:
            return
        rows = value.reshape(-1, value.shape[-1]).to(torch.float32)
        width = rows.shape[1]
        if name not in self.totals:
            self.totals[name] = torch.zeros(width, width, dtype=torch.float64)
        add_gram(self.totals[name], rows)
        # a product of two columns is no larger than the larger one's square
        if not torch.isfinite(self.totals[name].diagonal()).all():
            msg = f"the inputs of {name} have second moments that are not finite; the model overflows on this text"
            raise MeasurementError(msg)
        self.counts[name] = self.counts.get(name, 0) + int(rows.any(1).sum())

    def finish(self, loaded: LoadedModel, tokens: Tensor, batch_size: int) -> None:
        """To those of a head tied to the embedding, add the moments of the gradients at the embedding's output."""
        head = loaded.architecture.head
        if head not in self.key_of or not loaded.card.tensor(head).tied:
            return
        rows = tokens[: max(1, LOOKUP_TOKENS // tokens.shape[1])]
        seen = _Lookups()
        for seed, batch in enumerate(rows.split(batch_size)):
            sampled_backward(loaded, batch, (seed,), seen, tensors=(head,))
        self.totals[self.key_of[head]] += seen.total * (self.counts[self.key_of[head]] / rows.numel())

    def mean(self, key: str) -> Tensor:
        """Moments, float32 ``[in, in]``; zeros if all inputs were zeros."""
        return mirrored(by_rows(self.totals[key], max(1, self.counts[key])))

    def tokens(self) -> dict[str, int]:
        """Tokens that reached a tensor, by its name; 0 where none did."""
        names = [name for names in self.names.values() for name in names]
        return {name: self.counts.get(self.key_of.get(name, name), 0) for name in names}


@dataclass
class _Lookups:
    """Sees the gradients at the embedding's output, see `qplan.model.backward.Observer`."""

    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def forward(self, module: nn.Linear, inputs: Tensor, outputs: Tensor) -> None:
        """Nothing to do."""

    def backward(self, module: nn.Linear, inputs: Tensor, gradients: Tensor, lookups: Tensor | None) -> None:  # noqa: ARG002
        """Add ``l l'``."""
        if lookups is not None:
            rows = lookups.reshape(-1, lookups.shape[-1]).to(torch.float32)
            self.total = self.total + (rows.T @ rows).cpu().to(torch.float64)


def _layer_by_layer(
    way: WayThere, first: int, start: int, progress: Progress | None
) -> Iterator[tuple[int, LayerSums]]:
    """Sums of the inputs of decoder layers from ``start`` on and of the head's, over all batches but the first ones."""
    count, batches = len(way.loaded.layers), len(way.batches)

    def run(index: int, number: int) -> None:
        way.run(index, number)
        if progress is not None:
            progress(index * batches + number + 1, (count + 1) * batches)

    for index in range(start, count + 1):
        sums = LayerSums(names_by_linear(way.loaded, index))
        with with_layer_read(way.loaded, index) if index < count else nullcontext():
            for number in range(first if index < count else 0):
                way.run(index, number)
            with without_logits(way.loaded):
                sums.see_all(partial(run, index, number) for number in range(first, batches))
        yield index, sums


def without_logits(loaded: LoadedModel) -> AbstractContextManager[None]:
    """Spare the head's product: what it is given is known without its logits."""
    return with_forward(loaded.head, lambda x: x[..., :1])
