"""Tiny models and a calibration set, made once per session and only for the tests that ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from qplan.calibration import Text, tokenize
from qplan.cost.file_bytes import FixedBytes
from qplan.model.load import LoadedModel, load_model
from qplan.run.calibration import CalibrationSet
from qplan.run.table import SensitivityTable
from tests.support.invented_table import make_table
from tests.support.tiny_models import BUILDERS, VOCABULARY, save_model, words


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny models by model type."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_model(name, root / name) for name in BUILDERS}


@pytest.fixture(scope="session")
def tiny_models(model_folders: dict[str, Path]) -> dict[str, LoadedModel]:
    """The tiny models, loaded, by model type."""
    return {name: load_model(str(folder)) for name, folder in model_folders.items()}


@pytest.fixture(scope="session", params=sorted(BUILDERS))
def tiny(request: pytest.FixtureRequest, tiny_models: dict[str, LoadedModel]) -> LoadedModel:
    """Each tiny model in turn."""
    return tiny_models[request.param]


@pytest.fixture(scope="session")
def qwen2(tiny_models: dict[str, LoadedModel]) -> LoadedModel:
    """A tiny Qwen2 with tied embeddings."""
    return tiny_models["qwen2"]


@pytest.fixture(scope="session")
def llama(tiny_models: dict[str, LoadedModel]) -> LoadedModel:
    """A tiny Llama with an untied embedding and rows of 172 weights."""
    return tiny_models["llama"]


@pytest.fixture(scope="session")
def calibration(qwen2: LoadedModel) -> CalibrationSet:
    """Six sequences of 16 tokens; the tiny models share one tokenizer."""
    text = Text((words(300, seed=1),), "words", None)
    return tokenize(text, qwen2.tokenizer, samples=6, seq_len=16, seed=0, context=128, vocabulary=VOCABULARY)


@pytest.fixture
def table() -> SensitivityTable:
    """Four layers of three tensors and a tied head, in fp16, int8, int6 and int4."""
    return make_table()


@pytest.fixture
def fixed(table: SensitivityTable) -> FixedBytes:
    """What the model's files hold besides."""
    return FixedBytes(8 * table.model.norm_weights, 0, 20_000, exact=True)
