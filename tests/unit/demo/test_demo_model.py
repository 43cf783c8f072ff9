"""The committed demo model: its files, its architecture, what it learnt, and where its text came from."""

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

from qplan.demo import corpus, perplexity

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "qplan" / "demo" / "stdlib-3m"
CALIBRATION = ROOT / "calib" / "python-stdlib"
HELDOUT = ROOT / "qplan" / "demo" / "heldout.txt"
TRAINING = ROOT / "qplan" / "demo" / "training.json"

SLICE_TOKENS = 4096
MEBIBYTE = 1 << 20
# Below this, equal text is boilerplate such as an empty package file.
MIN_SOURCE_CHARS = 1000


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


@pytest.fixture(scope="module", name="modules")
def read_modules() -> list[corpus.Module]:
    return corpus.collect_modules()


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


def test_recorded_perplexity_is_that_of_the_stored_model(model: Any, tokenizer: Any) -> None:
    recorded = read_json(TRAINING)["heldout"]
    ids = tokenizer(HELDOUT.read_text(encoding="utf-8"), verbose=False).input_ids
    assert len(perplexity.predicted_tokens(ids)) == recorded["tokens"]
    assert perplexity.model_perplexity(model, ids) == pytest.approx(recorded["perplexity"], rel=1e-3)
    assert recorded["perplexity"] < recorded["unigram_perplexity"] / 5


def test_perplexity_of_a_uniform_unigram_model_is_the_vocabulary_size() -> None:
    assert perplexity.unigram_perplexity([0, 1, 2, 3], [3, 0, 0], 4) == pytest.approx(4.0)


def test_too_short_a_text_has_no_perplexity() -> None:
    with pytest.raises(ValueError, match="too few"):
        perplexity.window_inputs([1, 2, 3])


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


def test_no_source_is_in_two_splits(modules: list[corpus.Module]) -> None:
    owner: dict[str, corpus.Split] = {}
    for module in modules:
        if len(module.source) >= MIN_SOURCE_CHARS:
            assert owner.setdefault(module.source, module.split) is module.split, module.path
    assert set(owner.values()) == set(corpus.Split)


def test_heldout_lines_are_not_training_lines(modules: list[corpus.Module]) -> None:
    heldout = corpus.cut_text(modules, corpus.Split.HELDOUT, 220_000)
    lines = [line for line in heldout.splitlines() if len(line) >= 40]
    known = set("\n".join(corpus.documents(modules, corpus.Split.TRAIN)).splitlines())
    # Idioms and notices recur all over Python's code; a leaked module would show as far more.
    assert sum(line in known for line in lines) < 0.1 * len(lines)


def write_library(folder: Path) -> None:
    """Writes a small standard library with files that must be left out."""
    files = {
        "alpha.py": '"""Alpha."""\n\n\ndef f():\n    """Does f."""\n',
        "pkg/beta.py": "x = 1\n",
        "pkg/test/gamma.py": "x = 2\n",
        "site-packages/delta.py": "x = 3\n",
        "_sysconfigdata_linux.py": "build_time_vars = {}\n",
        "own.py": "# Permission to use,\n# copy, modify ...\nx = 4\n",
        "encodings/cp999.py": "decoding_table = (\n)\n",
        "empty.py": "\n",
    }
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source, encoding="utf-8")


def test_collection_is_deterministic_and_leaves_out_what_is_unfit(tmp_path: Path) -> None:
    write_library(tmp_path)
    modules = corpus.collect_modules(tmp_path)
    assert [module.path for module in modules] == ["alpha.py", "pkg/beta.py"]
    assert modules[0].prose == "Alpha.\n\nDoes f."
    assert corpus.collect_modules(tmp_path) == modules


def test_split_depends_on_the_path_alone() -> None:
    # Pinned: another assignment would put trained-on modules into the held-out text.
    assert corpus.split_of("copyreg.py") is corpus.Split.HELDOUT
    assert corpus.split_of("argparse.py") is corpus.Split.TRAIN


def test_cut_text_keeps_whole_lines_within_the_limit() -> None:
    source = "".join(f"line_{number} = {number}\n" for number in range(200))
    modules = [corpus.Module("copyreg.py", source, "")]
    text = corpus.cut_text(modules, corpus.Split.HELDOUT, 500)
    assert len(text.encode()) <= 500
    assert source.startswith(text)
