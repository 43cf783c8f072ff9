"""Second moments of every linear's inputs, ``X'X / tokens``: what error-feedback rounding minimises against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qplan.artifact import atomic_path
from qplan.errors import MeasurementError
from qplan.model.load import LoadedModel

Progress = Callable[[int, int], None]
"""Told how many passes are done, of how many."""

PASS_BYTES = 2 << 30
"""Moments gathered in one pass over the tokens; a model with more takes several passes."""


@dataclass(frozen=True)
class Moments:
    """Moments of one model's inputs, on disk; read one matrix at a time."""

    path: Path
    key_of: dict[str, str]
    """Entry of the file by tensor name; tensors that read the same input share one."""

    def of(self, tensor: str) -> Tensor:
        """float32 ``[in_features, in_features]``."""
        with safe_open(self.path, "pt") as stored:
            matrix: Tensor = stored.get_tensor(self.key_of[tensor])
        return matrix


def gather_moments(
    loaded: LoadedModel,
    tokens: Tensor,
    path: Path,
    *,
    inputs: dict[str, str],
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Moments:
    """Run tokens through the FP32 model and write the moments of every planned linear's input.

    Linears that are given the same tensor (q, k and v; gate and up) share one matrix. Memory is bounded by
    `PASS_BYTES`, or by the widest input if that needs more.

    Args:
        loaded: the model.
        tokens: int64 ``[rows, seq_len]``.
        path: safetensors file to write.
        inputs: what the moments depend on, kept in the file's metadata.
        batch_size: rows per pass.
        progress: called after each batch.

    Raises:
        MeasurementError: an input that is not finite, or a linear that no token reached.
    """
    groups = _shared_inputs(loaded, tokens[:1])
    batches = tokens.split(batch_size)
    chunks = list(_chunks(loaded, list(groups)))
    found: dict[str, Tensor] = {}
    for number, chunk in enumerate(chunks):
        sums = {key: torch.zeros(0) for key in chunk}
        with _hooks(loaded, chunk, sums):
            for done, batch in enumerate(batches):
                loaded.logits(batch)
                if progress is not None:
                    progress(number * len(batches) + done + 1, len(chunks) * len(batches))
        for key, total in sums.items():
            if not total.numel() or not torch.isfinite(total).all() or not total.any():
                msg = f"the inputs of {key} have second moments that are empty, zero or not finite"
                raise MeasurementError(msg)
            found[key] = (total / tokens.numel()).to(torch.float32)
    with atomic_path(path) as temporary:
        save_file(found, temporary, metadata=inputs)
    return Moments(path, {name: key for key, names in groups.items() for name in names})


def open_moments(loaded: LoadedModel, tokens: Tensor, path: Path, inputs: dict[str, str]) -> Moments | None:
    """Open moments that `gather_moments` wrote from the same inputs; None if there are none."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as stored:
        if stored.metadata() != inputs:
            return None
    groups = _shared_inputs(loaded, tokens[:1])
    return Moments(path, {name: key for key, names in groups.items() for name in names})


def _shared_inputs(loaded: LoadedModel, row: Tensor) -> dict[str, list[str]]:
    """Tensor names by the first tensor that reads the same input, found by running one row."""
    first: dict[int, str] = {}
    groups: dict[str, list[str]] = {}
    held: list[Tensor] = []
    with ExitStack() as stack:
        for module, names in _by_module(loaded).items():

            def note(_: nn.Module, args: tuple[Tensor, ...], names: list[str] = names) -> None:
                held.append(args[0])  # a freed tensor's identity could come back as another's
                key = first.setdefault(id(args[0]), names[0])
                groups.setdefault(key, []).extend(names)

            stack.callback(module.register_forward_pre_hook(note).remove)
        loaded.logits(row)
    return groups


def _by_module(loaded: LoadedModel) -> dict[nn.Linear, list[str]]:
    modules: dict[nn.Linear, list[str]] = {}
    for spec in loaded.card.tensors:
        modules.setdefault(loaded.linear(spec.name), []).append(spec.name)
    return modules


def _chunks(loaded: LoadedModel, keys: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for key in keys:
        need = 8 * loaded.linear(key).in_features ** 2
        if chunk and size + need > PASS_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(key)
        size += need
    if chunk:
        yield chunk


@contextmanager
def _hooks(loaded: LoadedModel, keys: Sequence[str], sums: dict[str, Tensor]) -> Iterator[None]:
    with ExitStack() as stack:
        for key in keys:

            def add(_: nn.Module, args: tuple[Tensor, ...], key: str = key) -> None:
                rows = args[0].reshape(-1, args[0].shape[-1]).to(torch.float32)
                product = (rows.T @ rows).cpu().to(torch.float64)
                sums[key] = sums[key] + product if sums[key].numel() else product

            stack.callback(loaded.linear(key).register_forward_pre_hook(add).remove)
        yield
