"""The token ids that a model is measured on, and held-out ones that the verification uses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import sha256_json
from qplan.calibration.text import Text
from qplan.calibration.tokenizer import check_ids
from qplan.errors import InputError
from qplan.run.calibration import CalibrationSet, Ids


def tokenize(
    text: Text,
    tokenizer: Any,  # noqa: ANN401 - a Hugging Face tokenizer
    *,
    samples: int,
    seq_len: int,
    seed: int,
    context: int,
    vocabulary: int,
    fit_tokens: int = 0,
) -> CalibrationSet:
    """Cut a text into windows and choose calibration and held-out ones by a seeded permutation.

    Documents are tokenized whole, without special tokens, and joined; windows do not overlap. Of kinds of text none is
    joined to another, and the same number of windows is taken of each, as far as they have them. As many windows are
    held out as are used, if the text has them, and at least one; rounding is fitted to windows beyond those.

    Args:
        text: what to tokenize.
        tokenizer: the model's Hugging Face tokenizer.
        samples: calibration sequences.
        seq_len: tokens per sequence.
        seed: seed of the permutation.
        context: longest sequence of the model, in tokens.
        vocabulary: number of token ids that the model knows.
        fit_tokens: at most this many tokens in `CalibrationSet.fit`.

    Raises:
        InputError: limits that cannot be met, a text that is too short, or a tokenizer of another model.
    """
    check_limits(samples, seq_len, context)
    check_ids(tokenizer, vocabulary)
    parts = _token_ids(text, tokenizer)
    total = sum(map(len, parts))
    cut = [ids[: len(ids) // seq_len * seq_len].reshape(-1, seq_len) for ids in parts]
    windows = np.concatenate(cut)
    if len(windows) <= samples:
        msg = (
            f"{text.source} has {total} tokens; --samples {samples} --seq-len {seq_len} needs {samples * seq_len}, "
            f"and {seq_len} more to hold out; give a longer text or lower --samples or --seq-len"
        )
        raise InputError(msg)
    order = _by_turns([len(part) for part in cut], np.random.default_rng(seed))
    chosen, rest, more = np.split(order[: 2 * samples + fit_tokens // seq_len], (samples, 2 * samples))
    return CalibrationSet(
        windows[np.sort(chosen)],
        windows[np.sort(rest)],
        # a text without more windows is fitted to what it is measured on; the held-out ones stay apart
        windows[np.sort(more if len(more) else chosen)],
        text.source,
        text.license,
        seed,
        sha256_tokenizer(tokenizer),
    )


def sha256_tokenizer(tokenizer: Any) -> str:  # noqa: ANN401
    """Hash of what a tokenizer does to text: its serialized rules, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    return sha256_json(tokenizer.get_vocab())


def check_limits(samples: int, seq_len: int, context: int) -> None:
    """Refuse windows that no text has, or that are longer than a model's context.

    Raises:
        InputError: the option, its value and the limit.
    """
    if samples < 1:
        msg = f"--samples {samples}: at least 1 sequence is needed"
        raise InputError(msg)
    if seq_len < 2:
        msg = f"--seq-len {seq_len}: at least 2 tokens are needed to predict one from another"
        raise InputError(msg)
    if seq_len > context:
        msg = f"--seq-len {seq_len} is above the model's context of {context} tokens; lower it"
        raise InputError(msg)


def _by_turns(counts: Sequence[int], random: np.random.Generator) -> NDArray[np.int64]:
    """Places of windows: those of every kind in a random order, and kinds by turns."""
    ends = np.cumsum(counts)
    orders = [end - count + random.permutation(count) for count, end in zip(counts, ends, strict=True)]
    turns = np.concatenate([np.arange(count) for count in counts])
    return np.concatenate(orders)[np.argsort(turns, kind="stable")]


def _token_ids(text: Text, tokenizer: Any) -> list[Ids]:  # noqa: ANN401
    """Ids of every kind of text."""
    # verbose=False: a document may well be longer than the context, windows are cut afterwards
    parts = [
        np.asarray(tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
        for document in text.documents
    ]
    joined = [np.concatenate(parts)] if parts else [np.zeros(0, dtype=np.int64)]
    return parts if text.kinds else joined
