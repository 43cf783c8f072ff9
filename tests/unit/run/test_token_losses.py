from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qplan.errors import InputError
from qplan.run.token_losses import TokenLosses


def test_losses_of_tokens_come_back_as_written(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).random((2, 3)).astype(np.float32)
    tokens = (("a", "b", "\n"), ("d", "�", "ü"))
    TokenLosses("plan", "m", "text", "t", tokens, {"low": losses}).write(tmp_path / "x.json")
    found = TokenLosses.read(tmp_path / "x.json")
    assert (found.model, found.model_sha256, found.text_sha256, found.tokens) == ("plan", "m", "t", tokens)
    assert np.array_equal(found.kl_nats["low"], losses)


def test_losses_of_another_text_are_refused(tmp_path: Path) -> None:
    TokenLosses("plan", "m", "text", "t", (("a", "b"),), {"low": np.zeros((1, 3), np.float32)}).write(
        tmp_path / "x.json"
    )
    with pytest.raises(InputError, match=r"have shape \(1, 3\), the text \(1, 2\); make it again"):
        TokenLosses.read(tmp_path / "x.json")
