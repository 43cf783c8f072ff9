"""The model's own answers, and what others are held against."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from qplan.formats import INT4, INT8, QuantFormat
from qplan.model.load import LoadedModel
from qplan.rounding import rtn
from qplan.rounding.rounder import Rounder
from qplan.run.calibration import CalibrationSet
from qplan.sensitivity.kept_logits import kept_logits
from qplan.verify.layers import kl_between
from qplan.verify.reference import accuracy_of, relative_error, stored_logits, torch_logits


def test_a_model_against_itself_loses_nothing(llama: LoadedModel, calibration: CalibrationSet) -> None:
    rows, seen = calibration.tokens[:3], []
    with kept_logits(llama, rows, lambda done, total: seen.append((done, total))) as reference:
        assert reference.logits.shape == (*rows.shape, llama.card.vocabulary)
        stats = reference.compare(lambda ids: torch_logits(llama, ids))
        found = accuracy_of(stats)
        tokens = torch.from_numpy(rows)
        nll = functional.cross_entropy(llama.logits(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        assert reference.perplexity == pytest.approx(math.exp(nll), rel=1e-5)
        assert reference.compare(lambda ids: torch_logits(llama, ids), rows=1).tokens == rows.shape[1]
    assert (found.kl_nats, found.kl_p99_nats, found.top1, found.tokens) == (0, 0, 1, rows.size)
    assert found.perplexity == pytest.approx(math.exp(nll), rel=1e-5)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_logits_are_kept_where_files_cannot_be_reserved(
    llama: LoadedModel, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kept_logits(llama, calibration.tokens[:1]) as reference:
        expected = reference.of(slice(None))
    monkeypatch.delattr("os.posix_fallocate")  # as on macOS
    with kept_logits(llama, calibration.tokens[:1]) as reference:
        assert torch.equal(reference.of(slice(None)), expected)


def test_stored_weights_are_those_that_the_engine_reads_back(llama: LoadedModel, calibration: CalibrationSet) -> None:
    ids = calibration.tokens[0].tolist()
    formats = {spec.name: INT4.resolve(spec.in_features) for spec in llama.card.tensors}
    found = stored_logits(Rounder(llama), formats, ids)
    kept = {name: llama.linear(name).weight.detach().clone() for name in formats}
    table = llama.embedding.weight.detach().clone()
    with torch.no_grad():
        # an untied embedding ships in bfloat16
        llama.embedding.weight.copy_(table.to(torch.bfloat16))
        for name, fmt in formats.items():
            llama.linear(name).weight.copy_(rtn(kept[name], fmt).dequantize())
        by_hand = torch_logits(llama, ids)
        llama.embedding.weight.copy_(table)
        for name, weight in kept.items():
            llama.linear(name).weight.copy_(weight)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-5)


def test_fewer_bits_are_further_away(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    ids = calibration.tokens[0].tolist()
    exact = torch_logits(qwen2, ids)
    errors, losses = [], []
    for fmt in (QuantFormat(16, 0), INT8, INT4):
        found = stored_logits(Rounder(qwen2), {spec.name: fmt for spec in qwen2.card.tensors}, ids)
        errors.append(relative_error(found, exact))
        losses.append(kl_between(exact, found, ids))
    for series in (errors, losses):
        assert all(0 < wide < narrow for wide, narrow in pairwise(series))
    np.testing.assert_array_equal(torch_logits(qwen2, ids), exact)


def test_an_error_is_relative_to_what_was_expected() -> None:
    expected = np.array([[3.0, 4.0]], np.float32)
    assert relative_error(expected, expected) == 0
    assert relative_error(expected + np.array([[0.3, 0.4]], np.float32), expected) == pytest.approx(0.1)
