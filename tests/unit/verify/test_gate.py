"""The sequences that an export is judged by: beyond every window and original context that the model allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qplan.errors import VerificationError
from qplan.model.load import LoadedModel, load_model
from qplan.model.specimen import save_specimen
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.uniform import uniform_formats
from qplan.verify.bench import GATE_TOKENS, BuildBench
from qplan.verify.measure import Trial
from qplan.verify.prove import gate
from qplan.verify.reference import stored_logits


def bench(loaded: LoadedModel) -> BuildBench:
    rows = np.arange(1, 41).reshape(2, 20)
    trial = Trial(KeptLogits(rows, np.zeros((2, 20, 1), np.float32)), threads=1)
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


class Double(BuildBench):
    """Builds nothing; its engine is right about logits, and makes every token ``times``."""

    times = 1

    def build(self, *_: object, **__: object) -> None:
        """Make what the gate removes."""
        (self.baselines / "gate").mkdir()

    @contextmanager
    def engine(self, folder: Path) -> Iterator[Any]:  # type: ignore[override]
        """Stands for the engine."""
        loaded, formats = self.loaded, uniform_formats(self.loaded.card, 16)

        def encode(text: str) -> list[int]:
            return [one for one in loaded.tokenizer(text)["input_ids"] for _ in range(self.times)]

        yield SimpleNamespace(
            folder=folder, encode=encode, logits=lambda ids: stored_logits(Rounder(loaded), formats, ids)
        )


class Twice(Double):
    """Every token twice."""

    times = 2


def test_a_tokenizer_that_is_exported_wrongly_is_refused_before_anything_is_planned(
    tmp_path: Path, qwen2: LoadedModel
) -> None:
    made = replace(bench(qwen2), baselines=tmp_path, skeleton=SimpleNamespace(exporter="llmexport 1"))  # type: ignore[arg-type]
    values = {field.name: getattr(made, field.name) for field in fields(made)}
    assert [check.passed for check in gate(Double(**values))] == [True]
    with pytest.raises(VerificationError, match=r"tokenizer as exported by llmexport 1 makes other tokens .* english"):
        gate(Twice(**values))
    assert not (tmp_path / "gate").exists()
