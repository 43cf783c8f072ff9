from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qplan.model.load import LoadedModel
from qplan.model.outline import outline


@pytest.mark.parametrize("name", ["qwen2", "llama", "phi3", "qwen3_moe"])
def test_an_outline_has_the_tensors_of_the_loaded_model(
    model_folders: dict[str, Path], tiny_models: dict[str, LoadedModel], name: str
) -> None:
    shape, card = outline(str(model_folders[name])), tiny_models[name].card
    assert replace(shape.card, source="", sha256="") == replace(card, source="", sha256="")
    assert sum(len(given.readers) for given in shape.inputs) == len(card.tensors)
    assert shape.checkpoint_bytes >= 2 * card.parameters


def test_linears_that_read_the_same_are_together(model_folders: dict[str, Path]) -> None:
    layer = outline(str(model_folders["llama"])).layers[0]
    assert [[spec.kind for spec in given.readers] for given in layer] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


def test_a_token_meets_a_share_of_the_experts(model_folders: dict[str, Path]) -> None:
    shape = outline(str(model_folders["qwen3_moe"]))
    shares = {spec.kind: given.share for given in shape.inputs for spec in given.readers}
    assert 0 < shares["down_proj"] < 1
    assert shares["q_proj"] == shares["lm_head"] == 1
