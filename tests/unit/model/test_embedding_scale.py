"""A factor of the embedding's lookups: in torch, and in its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from qplan.errors import InputError
from qplan.model.embedding_scale import (
    embedding_scale,
    read_embedding_scale,
    set_embedding_scale,
    write_embedding_scale,
)
from qplan.model.source import EMBEDDING_SCALE_FILE

IDS = torch.tensor([[3, 0, 6]])


def test_lookups_are_multiplied_and_the_shared_matrix_stays() -> None:
    embedding, scale = nn.Embedding(7, 4), torch.tensor([1.0, 2.0, 0.5, 4.0])
    before, weight = embedding(IDS), embedding.weight.clone()
    assert embedding_scale(embedding) is None
    set_embedding_scale(embedding, scale)
    assert torch.equal(embedding(IDS), before * scale)
    assert torch.equal(embedding.weight, weight)
    # the last factor counts, once
    set_embedding_scale(embedding, 2 * scale)
    assert torch.equal(embedding(IDS), before * 2 * scale)
    found = embedding_scale(embedding)
    assert found is not None
    assert torch.equal(found, 2 * scale)
    # Hugging Face's files must not get it
    assert set(embedding.state_dict()) == {"weight"}


def test_a_factor_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(3,\), expected \(4,\)"):
        set_embedding_scale(nn.Embedding(7, 4), torch.ones(3))


def test_the_file_holds_it_to_the_bit(tmp_path: Path) -> None:
    assert read_embedding_scale(tmp_path) is None
    scale = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.1
    write_embedding_scale(tmp_path, scale)
    found = read_embedding_scale(tmp_path)
    assert found is not None
    assert torch.equal(found, scale)


@pytest.mark.parametrize(
    "values",
    [
        np.ones((2, 2), np.float32),
        np.ones(4),
        np.array([1.0, 0.0], np.float32),
        np.array([1.0, -2.0], np.float32),
        np.array([1.0, np.nan], np.float32),
    ],
    ids=["two-dimensional", "doubles", "zero", "negative", "nan"],
)
def test_impossible_factors_are_refused(tmp_path: Path, values: NDArray[Any]) -> None:
    np.save(tmp_path / EMBEDDING_SCALE_FILE, values)
    with pytest.raises(InputError, match="expected positive float32"):
        read_embedding_scale(tmp_path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / EMBEDDING_SCALE_FILE).write_bytes(b"\x93NUMPY damaged")
    with pytest.raises(InputError, match="cannot be read"):
        read_embedding_scale(tmp_path)
    # a pickle is never opened
    np.save(tmp_path / EMBEDDING_SCALE_FILE, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_embedding_scale(tmp_path)
