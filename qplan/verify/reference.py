"""The Hugging Face model's own answers on held-out tokens: what every built model is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.model.replace import LookUp, with_lookups
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored import row_pieces
from qplan.run.verification import Accuracy
from qplan.sensitivity.kept_logits import Logits
from qplan.sensitivity.metrics import TokenStats
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats


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

    def moved(look_up: LookUp, ids: torch.Tensor) -> torch.Tensor:
        wanted, places = ids.unique(return_inverse=True)
        shape = loaded.embedding.num_embeddings, loaded.embedding.embedding_dim
        noise = _noise(shape, wanted.cpu()).to(loaded.device) * (torch.finfo(torch.float32).eps / 2)
        changed = look_up(wanted) * (1 + noise)
        return changed[places]

    with with_lookups(loaded, moved):
        return relative_error(torch_logits(loaded, token_ids), plain)


def _noise(shape: tuple[int, int], rows: torch.Tensor) -> torch.Tensor:
    """Some rows, in ascending order, of a matrix of normal random numbers, drawn piece by piece."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for piece in row_pieces(*shape):
        drawn = torch.randn(piece.stop - piece.start, shape[1], generator=generator)
        parts.append(drawn[rows[(rows >= piece.start) & (rows < piece.stop)] - piece.start])
    return torch.cat(parts)


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
