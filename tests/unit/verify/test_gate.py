"""The sequences that an export is judged by: beyond every window and original context that the model allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qplan.model.load import LoadedModel, load_model
from qplan.model.specimen import save_specimen
from qplan.verify.measure import Trial
from qplan.verify.prove import GATE_TOKENS, BuildBench
from qplan.verify.reference import Reference


def bench(loaded: LoadedModel) -> BuildBench:
    rows = np.arange(1, 41).reshape(2, 20)
    trial = Trial(Reference(rows, np.zeros((2, 20, 1), np.float32)), threads=1)
    absent: Any = None
    return BuildBench(
        loaded=loaded,
        skeleton=absent,
        trial=trial,
        text=absent,
        text_sha256="",
        baselines=Path(),
        say=lambda _: None,
        target=absent,
    )


@pytest.mark.parametrize(
    ("specimen", "context", "expected"),
    [
        ("llama", 256, None),
        ("mistral-sliding-window", 256, 64 + GATE_TOKENS),
        ("mistral-sliding-window", 100, 100),
        ("mistral-sliding-window", 64, None),
        ("llama-rope-yarn", 256, 64 + GATE_TOKENS),
    ],
)
def test_the_long_sequence_reaches_beyond_the_boundary(
    tmp_path: Path, specimen: str, context: int, expected: int | None
) -> None:
    made = bench(load_model(str(save_specimen(specimen, tmp_path))).within(context))
    assert made.long_tokens == expected


def test_tokens_are_those_of_the_text_again_and_again(tmp_path: Path) -> None:
    made = bench(load_model(str(save_specimen("llama", tmp_path))))
    assert made.token_ids == list(range(1, 21))
    assert made.tokens(42) == [*range(1, 41), 1, 2]
