"""How much an analysis takes on at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.jobs.options import LOGITS_BYTES, sequences_per_pass
from qplan.model.load import LoadedModel


@pytest.mark.parametrize(
    ("vocabulary", "seq_len", "expected"), [(320, 256, 4), (151936, 256, 4), (151936, 512, 2), (151936, 8192, 1)]
)
def test_fewer_sequences_run_at_once_where_their_logits_are_large(
    qwen2: LoadedModel, vocabulary: int, seq_len: int, expected: int
) -> None:
    sequences = sequences_per_pass(replace(qwen2.card, vocabulary=vocabulary), seq_len)
    assert sequences == expected
    assert sequences == 1 or 4 * sequences * seq_len * vocabulary <= LOGITS_BYTES
