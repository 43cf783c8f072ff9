"""Tiny random models: one for every architecture that qplan plans for, saved as Hugging Face saves them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qplan.errors import InputError
from qplan.model.load import load_model
from qplan.model.registry import ARCHITECTURES
from qplan.model.specimen import save_specimen
from qplan.model.specimen_sizes import SPECIMENS, VOCABULARY


def test_every_architecture_that_is_planned_for_can_be_measured() -> None:
    assert set(ARCHITECTURES) <= {specimen.model_type for specimen in SPECIMENS.values()}


@pytest.mark.parametrize("name", ["llama-tied", "gemma2", "phi3", "qwen3_moe"])
def test_a_specimen_is_a_model_that_loads(name: str, tmp_path: Path) -> None:
    loaded = load_model(str(save_specimen(name, tmp_path)))
    assert loaded.card.vocabulary == VOCABULARY == len(loaded.tokenizer)
    assert loaded.card.model_type == SPECIMENS[name].model_type
    logits = loaded.logits(torch.arange(1, 9)[None])[0]
    # a wrong mask or rotation would not show in logits that are all alike
    assert float(logits.std(0).median()) > 0.1


def test_the_same_seed_is_the_same_model_and_sizes_can_differ(tmp_path: Path) -> None:
    folders = [save_specimen("llama", tmp_path / str(index), seed=seed) for index, seed in enumerate((7, 7, 8))]
    first, second, third = (load_model(str(folder)).card.sha256 for folder in folders)
    assert first == second != third
    wide = load_model(str(save_specimen("llama", tmp_path / "wide", intermediate_size=172)))
    assert {spec.in_features for spec in wide.card.tensors if spec.kind == "down_proj"} == {172}


def test_an_unknown_specimen_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no specimens are called bert; there are llama, llama-tied, "):
        save_specimen("bert", tmp_path)
