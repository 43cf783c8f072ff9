"""The Hugging Face model's own answers on held-out tokens: what every built model is judged by."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.artifact import temporary_folder, writing
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.model.replace import with_embedding
from qplan.quantize.rounder import Rounder
from qplan.run.verification import Accuracy
from qplan.sensitivity.metrics import TokenStats, compare, join, reference_of
from qplan.sensitivity.variants import StoredWeights, apply_formats

Logits = NDArray[np.float32]
"""``[tokens, vocabulary]``."""


@dataclass(frozen=True)
class Reference:
    """Logits of the model in FP32 on some rows of tokens, on disk: a large vocabulary does not fit twice in RAM."""

    rows: NDArray[np.int64]
    """Token ids ``[rows, seq_len]``."""
    logits: Logits
    """``[rows, seq_len, vocabulary]``, memory-mapped."""

    def compare(self, logits_of: Callable[[Sequence[int]], Logits], rows: int | None = None) -> TokenStats:
        """Compare another model's logits with these, row by row.

        Args:
            logits_of: the other model, from token ids to float32 ``[tokens, vocabulary]``.
            rows: how many rows to take; None for all.
        """
        parts = []
        for ids, expected in zip(self.rows[:rows], self.logits[:rows], strict=True):
            prepared = reference_of(_tensor(expected), torch.from_numpy(ids))
            parts.append(compare(prepared, torch.from_numpy(logits_of(ids.tolist()))))
        return join(parts)

    @property
    def perplexity(self) -> float:
        """Perplexity of the text under the reference."""
        pairs = zip(self.rows, self.logits, strict=True)
        nll = torch.cat([reference_of(_tensor(logits), torch.from_numpy(ids)).nll for ids, logits in pairs])
        return float(nll.mean().exp())


@contextmanager
def reference_logits(
    loaded: LoadedModel, rows: NDArray[np.int64], progress: Callable[[int, int], None] | None = None
) -> Iterator[Reference]:
    """Run the model in FP32 over ``rows [n, seq_len]``; the logits live in a temporary file until the block ends.

    Raises:
        StorageError: the temporary folder has no space for them; set ``TMPDIR`` to one that has.
    """
    shape = (*rows.shape, loaded.card.vocabulary)
    with temporary_folder("reference") as folder:
        path = folder / "logits.f32"
        need = math.prod(shape) * np.dtype(np.float32).itemsize
        # a mapped file that finds no space when it is filled would end the process by a signal
        with writing(path, need=need), path.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, need)
        logits = np.memmap(path, np.float32, "r+", shape=shape)
        for index, row in enumerate(rows):
            logits[index] = torch_logits(loaded, row.tolist())
            if progress is not None:
                progress(index + 1, len(rows))
        yield Reference(rows, logits)
        del logits


def stored_logits(rounder: Rounder, formats: Mapping[str, QuantFormat], token_ids: Sequence[int]) -> Logits:
    """Logits ``[seq_len, vocabulary]`` that MNN computes with stored weights and float activations (memory normal)."""
    loaded = rounder.loaded
    with apply_formats(loaded, formats, "normal", stored=StoredWeights(loaded, rounder), engine_embedding=True):
        return torch_logits(loaded, token_ids)


def relative_error(actual: Logits, expected: Logits) -> float:
    """``||actual - expected|| / ||expected||`` over all logits, in float64."""
    difference = actual.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def float_scatter(loaded: LoadedModel, token_ids: Sequence[int]) -> float:
    """Relative change of the logits when every number of the embedding moves by half a step of float32, at random.

    So much, at least, do two right ways to add up the same floats differ in this model.
    """
    plain = torch_logits(loaded, token_ids)
    weight = loaded.embedding.weight.detach()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(weight.shape, generator=generator).to(weight) * (torch.finfo(torch.float32).eps / 2)
    with with_embedding(loaded, weight * (1 + noise)):
        return relative_error(torch_logits(loaded, token_ids), plain)


def accuracy_of(stats: TokenStats) -> Accuracy:
    """Summarize a comparison."""
    return Accuracy(
        kl_nats=stats.kl_nats,
        kl_p99_nats=stats.kl_p99_nats,
        top1=stats.top1,
        perplexity=float(np.exp(stats.nll_nats)),
        tokens=stats.tokens,
    )


def torch_logits(loaded: LoadedModel, token_ids: Sequence[int]) -> Logits:
    """Logits ``[tokens, vocabulary]`` of the torch model as it is now."""
    output = loaded.logits(torch.tensor([list(token_ids)]))[0]
    logits: Logits = output.to(torch.float32).cpu().numpy()
    return logits


def _tensor(values: Logits) -> torch.Tensor:
    return torch.from_numpy(np.array(values))
