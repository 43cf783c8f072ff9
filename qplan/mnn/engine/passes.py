"""How a long sequence is divided into passes of a prefill whose logits are, but for rounding, those of a single one."""

from __future__ import annotations

STEP = 16
"""Passes end at multiples of it. With ``dynamic_option`` 2 the engine computes the last tokens % 4 of a pass as it does
in decode (measured, 3.6.1: logits 0.5 % off behind a pass of 150 tokens, equal behind one of 64)."""

_LOGITS_BYTES = 256 << 20
"""Of a pass at most, in bytes."""

_LEAST = 2
"""Tokens of a pass: a single one is computed as in decode, under memory low 0.5 % off."""


def passes(tokens: int, first: int, vocabulary: int) -> list[int]:
    """Tokens of each pass over a sequence.

    The first ends before the first position whose logits are wanted, so that the head computes few that are not.

    Args:
        tokens: length of the sequence.
        first: first position whose logits are wanted, from 0.
        vocabulary: width of the logits.
    """
    most = max(2 * STEP, _LOGITS_BYTES // (4 * vocabulary) // STEP * STEP)
    # the head of a single position computes as in decode as well: the last pass makes the logits of two at least
    start = max(0, min(first, tokens - _LEAST)) // STEP * STEP
    ends = [start] if start else []
    while tokens - start > most:
        start += most - (STEP if tokens - start - most < _LEAST else 0)
        ends.append(start)
    return [end - begin for begin, end in zip([0, *ends], [*ends, tokens], strict=True)]
