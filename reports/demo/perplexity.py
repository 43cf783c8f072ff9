"""Perplexity of the demo model and of the unigram model it is compared with."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import PreTrainedModel

WINDOW = 256
_BATCH = 16


def window_inputs(ids: Sequence[int], window: int = WINDOW) -> torch.Tensor:
    """Cuts a token sequence into rows of window + 1 tokens that overlap by one.

    The tail that fills no window is dropped.

    Args:
        ids: Token ids of one text.
        window: Number of tokens that the model sees, and predicts, per row.
    """
    rows = (len(ids) - 1) // window
    if rows < 1:
        message = f"{len(ids)} tokens are too few for one window of {window}"
        raise ValueError(message)
    flat = torch.tensor(ids[: rows * window + 1], dtype=torch.long)
    return flat.unfold(0, window + 1, window)


def predicted_tokens(ids: Sequence[int], window: int = WINDOW) -> list[int]:
    """Returns the tokens that model_perplexity scores, in order."""
    return [int(token) for token in window_inputs(ids, window)[:, 1:].flatten()]


def model_perplexity(model: PreTrainedModel, ids: Sequence[int], window: int = WINDOW) -> float:
    """Returns the perplexity per token of a causal model over non-overlapping windows.

    Args:
        model: The model, in fp32.
        ids: Token ids of one text.
        window: Context length in tokens; the first token of each window is predicted from one token.
    """
    rows = window_inputs(ids, window)
    total = 0.0
    model.train(mode=False)
    with torch.inference_mode():
        for first in range(0, rows.shape[0], _BATCH):
            batch = rows[first : first + _BATCH]
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
            loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            total += float(loss)
    return math.exp(total / (rows.shape[0] * window))


def unigram_perplexity(counted: Sequence[int], scored: Sequence[int], vocab_size: int) -> float:
    """Returns the perplexity per token of a unigram model with add-one smoothing.

    Args:
        counted: Token ids that frequencies are counted on.
        scored: Token ids that the perplexity is computed over.
        vocab_size: Number of different tokens.
    """
    counts = torch.bincount(torch.tensor(counted, dtype=torch.long), minlength=vocab_size).double() + 1.0
    log_probs = (counts / counts.sum()).log()
    return math.exp(-float(log_probs[torch.tensor(scored, dtype=torch.long)].mean()))
