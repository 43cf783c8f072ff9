"""What is read from a config: with old and new keys, written out or left to the class's defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qplan.errors import InputError
from qplan.model.model_settings import ModelSetting, read_model_config, settings_of

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 512}


def read(folder: Path, **config: Any) -> dict[str, ModelSetting]:  # noqa: ANN401 - config values
    (folder / "config.json").write_text(json.dumps(SIZES | config))
    return {setting.name: setting for setting in settings_of(read_model_config(folder))}


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 96}, None),
        ({"model_type": "qwen2", "sliding_window": 96, "use_sliding_window": True, "max_window_layers": 1}, 96),
        # no layer is beyond the first two
        ({"model_type": "qwen2", "sliding_window": 96, "use_sliding_window": True, "max_window_layers": 2}, None),
        ({"model_type": "qwen3_moe", "sliding_window": 96, "use_sliding_window": True}, 96),
        ({"model_type": "phi3", "sliding_window": 2047}, 2047),
        ({"model_type": "llama"}, None),
    ],
)
def test_a_window_is_read_where_a_layer_has_it(tmp_path: Path, config: dict[str, Any], window: int | None) -> None:
    found = read(tmp_path, **config).get("sliding window")
    assert (found and found.boundary) == window


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_scaled_rotation_is_read_from_old_and_new_keys(tmp_path: Path, key: str) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
    found = read(tmp_path, model_type="llama", **{key: yarn})
    assert found["rope yarn"].boundary == 128
    assert found["rope yarn"].value == "yarn (factor 4)"


def test_dynamic_scaling_begins_at_the_context_and_linear_scaling_at_once(tmp_path: Path) -> None:
    dynamic = read(tmp_path, model_type="llama", rope_scaling={"type": "dynamic", "factor": 2.0})
    assert dynamic["rope dynamic"].boundary == SIZES["max_position_embeddings"]
    linear = read(tmp_path, model_type="llama", rope_scaling={"type": "linear", "factor": 2.0})
    assert linear["rope linear"].boundary is None


def test_caps_and_switches_are_read_and_a_plain_decoder_has_none(tmp_path: Path) -> None:
    assert set(read(tmp_path, model_type="gemma2")) == {
        "sliding window",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    }
    assert set(read(tmp_path, model_type="phi", qk_layernorm=True)) == {"qk_layernorm"}
    assert read(tmp_path, model_type="llama") == {}


def test_a_config_that_transformers_refuses_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": "wide"}))
    with pytest.raises(InputError, match=r"config.json cannot be used"):
        read_model_config(tmp_path)
