"""Samples count what is FP32's text, and show what departs from it earliest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qplan.verify.samples import SHOWN, samples_of

END = 0


class Letters:
    """A tokenizer of capital letters."""

    eos_token_id = END

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(64 + token) for token in tokens)


def test_texts_that_are_fp32s_to_the_last_token_are_counted() -> None:
    written = {"fp32": [[1, 2, 3], [4, 5, 6]], "int4": [[1, 2, 4], [4, 5, 6]], "plan": [[1, 2, 3], [4, 5, 6]]}
    found = samples_of(Letters(), np.array([[7, 8], [9, 10]]), written, 3)
    assert found.same == {"int4": 1, "plan": 2}
    assert (found.prompts, found.prompt_tokens, found.new_tokens) == (2, 2, 3)


def test_what_differs_most_is_shown_in_the_order_of_the_text() -> None:
    rows = 5
    reference = [[1, 1, 1, 1]] * rows
    # the number of tokens in common with FP32's falls from 4 to 0
    others = [[1] * (4 - row) + [2] * row for row in range(rows)]
    written = {"fp32": reference, "int4": others, "plan": reference}
    found = samples_of(Letters(), np.arange(1, rows + 1)[:, None], written, 4)
    assert [sample.prompt for sample in found.shown] == ["C", "D", "E"]
    assert len(found.shown) == SHOWN
    assert found.shown[-1].texts == {"fp32": "AAAA", "int4": "BBBB", "plan": "AAAA"}


def test_a_text_ends_where_the_model_ends_it() -> None:
    written = {"fp32": [[1, END, 5]], "int4": [[1, END, 9]], "plan": [[1, 2, END]]}
    found = samples_of(Letters(), np.array([[3]]), written, 3)
    assert found.same == {"int4": 1, "plan": 0}
    assert found.shown[0].texts == {"fp32": "A", "int4": "A", "plan": "AB"}
