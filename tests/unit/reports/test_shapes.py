"""Models of a known shape with random weights are whole ones of their architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from qplan.model.load import load_model
from reports.scale.shapes import SHAPES, write_shape

SMALL = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_shape_loads_with_all_of_its_weights(shape: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    own = {"head_dim": 32} if "head_dim" in SHAPES[shape] else {}
    monkeypatch.setitem(SHAPES, shape, SHAPES[shape] | SMALL | heads | own)
    write_shape(shape, tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    queries = loaded.card.tensor("model.layers.1.self_attn.q_proj")
    assert (queries.out_features, queries.in_features) == (4 * own.get("head_dim", 16), 64)
    assert loaded.card.architecture == ("Qwen3ForCausalLM" if own else "Qwen2ForCausalLM")
