"""The embedded model: its files, its architecture, what it learned, and the text beside it."""

import functools
import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen2ForCausalLM

from reports.demo import perplexity

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "qplan" / "demo"
MODEL = DEMO / "stdlib-3m"
CALIBRATION = ROOT / "calib" / "python-stdlib"
HELDOUT = DEMO / "heldout.txt"
TRAINING = DEMO / "training.json"

SLICE_TOKENS = 4096
MEBIBYTE = 1 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


@functools.cache
def shared_tokenizer() -> Any:
    """Returns the tokenizer, loaded once: hypothesis tests cannot take it from a fixture."""
    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@pytest.fixture(scope="module", name="tokenizer")
def load_tokenizer() -> Any:
    return shared_tokenizer()


@pytest.fixture(scope="module", name="model")
def load_model() -> Any:
    # The stored values are fp16; the arithmetic of the checks is fp32.
    return Qwen2ForCausalLM.from_pretrained(MODEL, local_files_only=True, dtype="float32")


def test_architecture() -> None:
    config = read_json(MODEL / "config.json")
    expected = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "float16",
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "vocab_size": 4096,
    }
    assert {key: config.get(key) for key in expected} == expected
    assert config["rope_parameters"]["rope_theta"] == 10000.0


def test_parameter_count(model: Any) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 1_500_000 <= count <= 4_000_000
    assert count == read_json(TRAINING)["parameters"]


def test_folder_is_small_and_complete() -> None:
    files = {file.name: file.stat().st_size for file in MODEL.iterdir()}
    assert set(files) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) < 8 * MEBIBYTE


def test_weights_are_stored_in_fp16() -> None:
    with safe_open(MODEL / "model.safetensors", framework="pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 - not a mapping
    assert kinds == {"F16"}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_configuration_names_no_place(name: str) -> None:
    config = read_json(MODEL / name)
    assert "_name_or_path" not in config
    assert not [value for value in config.values() if isinstance(value, str) and "/" in value]


def test_beats_the_unigram_model_five_times(model: Any, tokenizer: Any) -> None:
    calibration = (CALIBRATION / "text.txt").read_text(encoding="utf-8")
    ids = tokenizer(HELDOUT.read_text(encoding="utf-8"), verbose=False).input_ids[: SLICE_TOKENS + 1]
    scored = perplexity.predicted_tokens(ids)
    assert len(scored) == SLICE_TOKENS
    counted = tokenizer(calibration, verbose=False).input_ids
    unigram = perplexity.unigram_perplexity(counted, scored, model.config.vocab_size)
    assert perplexity.model_perplexity(model, ids) < unigram / 5


@pytest.mark.slow
def test_recorded_perplexity_is_that_of_the_stored_model(model: Any, tokenizer: Any) -> None:
    recorded = read_json(TRAINING)["heldout"]
    ids = tokenizer(HELDOUT.read_text(encoding="utf-8"), verbose=False).input_ids
    assert len(perplexity.predicted_tokens(ids)) == recorded["tokens"]
    assert perplexity.model_perplexity(model, ids) == pytest.approx(recorded["perplexity"], rel=1e-3)
    assert recorded["perplexity"] < recorded["unigram_perplexity"] / 5


@settings(deadline=None)
@given(text=st.text(max_size=200))
def test_tokenizer_round_trip(text: str) -> None:
    tokenizer = shared_tokenizer()
    ids = tokenizer(text).input_ids
    # Qwen2's tokenizer normalizes to NFC, so that is what comes back.
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)


def test_special_tokens_have_the_first_ids(tokenizer: Any) -> None:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2]
    assert len(tokenizer) == 4096


def test_chat_template_renders(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is a list?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nWhat is a list?<|im_end|>\n<|im_start|>assistant\n"


def test_manifest_describes_the_calibration_text() -> None:
    manifest = read_json(CALIBRATION / "manifest.json")
    data = b"".join((CALIBRATION / name).read_bytes() for name in manifest["files"])
    assert hashlib.sha256(data).hexdigest() == manifest["sha256"]
    assert len(data) == manifest["bytes"]
    assert manifest["licence"] == "PSF-2.0"


def test_text_sizes() -> None:
    assert 200_000 <= (CALIBRATION / "text.txt").stat().st_size <= 300_000
    assert 150_000 <= HELDOUT.stat().st_size <= 250_000


def test_the_room_holds_no_script_and_names_the_one_that_made_the_model() -> None:
    assert [path.name for path in DEMO.rglob("*.py")] == ["__init__.py"]
    for command in (read_json(TRAINING)["command"], read_json(CALIBRATION / "manifest.json")["how_made"]):
        module = command.removeprefix("python -m ").split()[0]
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
