"""Signal to quantization noise: estimates of it are what is measured, error feedback's correlated errors included."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import qplan.demo
from qplan.calibration.text import Text
from qplan.calibration.token_set import tokenize
from qplan.folding.one_pass import OnePass, label_seeds
from qplan.formats import INT4, INT8, QuantFormat
from qplan.model.layerwise import WayBack, WayThere
from qplan.model.load import LoadedModel, load_model
from qplan.rounding.moments import gather_moments
from qplan.rounding.rounder import Rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.fold_draft import FoldDraft
from qplan.run.measurement import summarize
from qplan.sensitivity.analysis import Analysis, Entry, open_analysis
from qplan.sensitivity.gradient import estimate
from qplan.sensitivity.measured import measure
from qplan.sensitivity.stored_weights import StoredWeights
from tests.support.tiny_models import make_tokenizer, words

FORMATS = (INT8, QuantFormat(4, 0), INT4, QuantFormat(3))
TYPICAL_DB, MOST_DB = 0.3, 1.5
"""What estimates are off by: half of them by less than the first, all by less than the second."""
DRAWN = 64


@dataclass(frozen=True)
class Case:
    """A model, its tokens, and the tensors to measure."""

    loaded: LoadedModel
    calibration: CalibrationSet
    layers: frozenset[int | None]


def _shaped_like_eight_million(folder: Path) -> LoadedModel:
    """Random, with channels of different sizes: what error feedback needs to correlate errors."""
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(torch.exp(torch.randn_like(parameter)))
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return load_model(str(folder))


@pytest.fixture(scope="module", params=["embedded", "8m"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "embedded":
        home = Path(qplan.demo.__file__).parent
        loaded = load_model(str(home / "stdlib-3m"))
        text = (home / "heldout.txt").read_text(encoding="utf-8")
        layers: frozenset[int | None] = frozenset({0, 5})
    else:
        loaded, text = _shaped_like_eight_million(tmp_path_factory.mktemp("8m")), words(9000)
        layers = frozenset({0, None})
    vocabulary = loaded.card.vocabulary
    calibration = tokenize(
        Text((text,), "text", None),
        loaded.tokenizer,
        samples=4,
        seq_len=128,
        seed=0,
        context=loaded.card.context,
        vocabulary=vocabulary,
        fit_tokens=2048,
    )
    return Case(loaded, calibration, layers)


@pytest.fixture(scope="module")
def rounder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Rounder:
    folder = tmp_path_factory.mktemp("moments")
    tokens = {"fit": case.calibration.fit, "judge": case.calibration.tokens}
    fit, judge = (
        gather_moments(case.loaded, torch.from_numpy(found), folder / part, inputs={}) for part, found in tokens.items()
    )
    return Rounder(case.loaded, "auto", fit, judge)


@pytest.fixture(scope="module")
def analysis(case: Case, rounder: Rounder) -> Iterator[Analysis]:
    with open_analysis(case.loaded, case.calibration, FORMATS, "low", rounder=rounder, drawn=DRAWN) as opened:
        yield opened


@pytest.fixture(scope="module")
def measured(case: Case, analysis: Analysis) -> dict[Entry, float]:
    card = case.loaded.card
    entries = {(n, f.name, m) for n, f, m in analysis.entries() if card.tensor(n).layer in case.layers}
    measure(analysis, entries)
    return {entry: summarize(analysis.rows(entry, "measured")).sqnr_db for entry in sorted(entries)}


def _agree(found: Mapping[Entry, float], measured: Mapping[Entry, float]) -> None:
    for memory in ("normal", "low"):
        off = {entry: abs(found[entry] - value) for entry, value in measured.items() if entry[2] == memory}
        assert median(off.values()) < TYPICAL_DB, memory
        assert max(off.values()) < MOST_DB, max(off, key=lambda entry: off[entry])


@pytest.mark.slow
def test_estimates_from_gradients_are_what_is_measured(analysis: Analysis, measured: dict[Entry, float]) -> None:
    estimate(analysis)
    _agree({entry: summarize(analysis.rows(entry, "gradient")).sqnr_db for entry in measured}, measured)


@pytest.mark.slow
def test_estimates_of_one_pass_are_what_is_measured(
    case: Case, rounder: Rounder, measured: dict[Entry, float], tmp_path: Path
) -> None:
    loaded, calibration = case.loaded, case.calibration
    with open_analysis(loaded, calibration, FORMATS, "low", rounder=rounder, drawn=DRAWN) as begun:
        own = replace(begun, stored=StoredWeights(loaded))
        batches = [*own.batches, *torch.from_numpy(calibration.fit).split(4)]
        there = WayThere(loaded, batches, kept=len(batches))
        for index in range(len(loaded.layers)):
            for number in range(len(batches)):
                there.run(index, number)
        draft = FoldDraft(tmp_path / "draft.json", {})
        one = OnePass(own, batches[len(own.batches) :], rounder.moments, DRAWN, fold=False, draft=draft)
        seeds = label_seeds(calibration.seed, len(batches))
        one.run(WayBack(loaded, batches, there.between, seeds, drawn=one.views.drawn_of))
        found = {entry: summarize(own.rows(entry, "gradient")).sqnr_db for entry in measured}
    _agree(found, measured)


@pytest.mark.slow
def test_independent_errors_would_not_do(case: Case, rounder: Rounder) -> None:
    """Error feedback makes far less noise than errors of the same sizes that know nothing of each other."""
    name = case.loaded.card.tensors[0].name
    assert rounder.judge is not None
    seen, weight = rounder.judge.of(name), case.loaded.weight(name).float()
    error = rounder.store(name, INT4).dequantize() - weight
    correlated, independent = float(((error @ seen) * error).sum()), float((error.square() @ seen.diagonal()).sum())
    assert 10 * math.log10(independent / correlated) > 2 * MOST_DB
