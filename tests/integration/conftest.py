"""Tiny random models with tokenizers, made and exported once per session; nothing is downloaded."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from qplan.formats import INT8
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.skeleton import Skeleton
from qplan.model.source import sha256_model
from tests.support.command import ANALYZE, succeed
from tests.support.fault_corpus import FAULTS, make_corpus, write_graph_json
from tests.support.mnn_models import VOCABULARY, ExportedModel, save
from tests.support.tiny_models import words


@pytest.fixture(scope="session")
def tied_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2: tied, biases on q, k, v, hidden 128, two layers."""
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    return save(model, tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="session")
def untied_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama: untied, no biases, hidden 172, which only blocks of 4 or a whole row divide."""
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=172,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )
    return save(LlamaForCausalLM(config), tmp_path_factory.mktemp("untied"))


def _exported(model: Path, name: str, factory: pytest.TempPathFactory) -> ExportedModel:
    """A model with its export, which the first of pytest's workers makes for all: every worker makes the same model."""
    own = factory.getbasetemp()
    home = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exported"
    home.mkdir(exist_ok=True)
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = home / f"{name}-{sha256_model(model)[:12]}" / "skeleton"
        return ExportedModel(model, Skeleton.open(folder) if folder.is_dir() else export_skeleton(model, folder))


@pytest.fixture(scope="session")
def tied_model(tied_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """The tied model, exported."""
    return _exported(tied_model_dir, "tied", tmp_path_factory)


@pytest.fixture(scope="session")
def untied_model(untied_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """The untied model, exported."""
    return _exported(untied_model_dir, "untied", tmp_path_factory)


@pytest.fixture(scope="session")
def model_of(request: pytest.FixtureRequest) -> Callable[[str], ExportedModel]:
    """Look one of the models up by name: ``tied`` or ``untied``."""

    def find(name: str) -> ExportedModel:
        found: ExportedModel = request.getfixturevalue(f"{name}_model")
        return found

    return find


@pytest.fixture(scope="session")
def token_ids() -> list[int]:
    """Forty tokens of the tiny vocabulary."""
    return [int(token) for token in np.random.default_rng(0).integers(0, VOCABULARY, 40)]


@pytest.fixture(scope="session")
def good(
    tied_model: ExportedModel, untied_model: ExportedModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A tied and an untied int8 model."""
    out = tmp_path_factory.mktemp("good")
    for name, model in (("tied", tied_model), ("untied", untied_model)):
        model.build(model.tensors(model.formats(INT8)), out / name)
    return {name: out / name for name in ("tied", "untied")}


@pytest.fixture(scope="session")
def corpus(good: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for every fault, by its name."""
    for folder in good.values():
        write_graph_json(folder)
    return make_corpus(FAULTS, good, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def analyzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with ``text.txt`` and a finished analysis in ``run``, by the fixture of the model; made once each."""
    made: dict[str, Path] = {}

    def folder_of(model: str) -> Path:
        if model not in made:
            folder = tmp_path_factory.mktemp("work")
            (folder / "text.txt").write_text(words(4000))
            source: Path = request.getfixturevalue(model)
            succeed("analyze", str(source), "--calib", "text.txt", "--run", "run", *ANALYZE, folder=folder)
            made[model] = folder
        return made[model]

    return folder_of
