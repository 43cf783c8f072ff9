from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qplan.errors import MeasurementError
from qplan.formats import FP16, INT4, QuantFormat
from qplan.model.load import LoadedModel
from qplan.quantize import IntTensor, rtn
from qplan.quantize.gptq import gptq
from qplan.sensitivity import moments, rounding
from qplan.sensitivity.moments import Moments, gather_moments, open_moments
from qplan.sensitivity.rounding import Rounder, best_rows, row_errors
from qplan.sensitivity.stored_cache import StoredCache

INPUTS = {"model": "a", "tokens": "b"}


def tokens(seed: int, rows: int = 6) -> torch.Tensor:
    return torch.randint(3, 300, (rows, 32), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def gathered(qwen2: LoadedModel, tmp_path: Path) -> Moments:
    return gather_moments(qwen2, tokens(0), tmp_path / "moments.safetensors", inputs=INPUTS)


def test_moments_are_those_of_the_inputs(qwen2: LoadedModel, gathered: Moments) -> None:
    seen: list[torch.Tensor] = []
    name = "model.layers.1.mlp.down_proj"
    hook = qwen2.linear(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    qwen2.logits(tokens(0))
    hook.remove()
    rows = torch.cat(seen).double()
    torch.testing.assert_close(gathered.of(name), (rows.T @ rows / len(rows)).float(), rtol=1e-4, atol=1e-6)


def test_tensors_with_one_input_share_one_matrix(gathered: Moments) -> None:
    key = gathered.key_of
    assert key["model.layers.0.self_attn.q_proj"] == key["model.layers.0.self_attn.v_proj"]
    assert key["model.layers.0.mlp.gate_proj"] == key["model.layers.0.mlp.up_proj"]
    assert len(set(key.values())) == 3 * 4 + 1


def test_several_passes_find_the_same(
    qwen2: LoadedModel, gathered: Moments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "PASS_BYTES", 1)
    seen: list[tuple[int, int]] = []
    again = gather_moments(
        qwen2, tokens(0), tmp_path / "again", inputs=INPUTS, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (13 * 2, 13 * 2)
    for name in gathered.key_of:
        assert torch.equal(again.of(name), gathered.of(name))


def test_moments_of_other_inputs_are_not_used(qwen2: LoadedModel, gathered: Moments) -> None:
    opened = open_moments(qwen2, tokens(0), gathered.path, INPUTS)
    assert opened == gathered
    assert open_moments(qwen2, tokens(0), gathered.path, INPUTS | {"tokens": "c"}) is None
    assert open_moments(qwen2, tokens(0), gathered.path.with_name("none"), INPUTS) is None


def test_dead_inputs_are_an_error(qwen2: LoadedModel, tmp_path: Path) -> None:
    linear = qwen2.linear("model.layers.0.mlp.up_proj")
    hook = linear.register_forward_pre_hook(lambda _, args: (args[0] * torch.nan,), prepend=True)
    try:
        with pytest.raises(MeasurementError, match="not finite"):
            gather_moments(qwen2, tokens(0), tmp_path / "moments", inputs=INPUTS)
    finally:
        hook.remove()
    assert not (tmp_path / "moments").exists()


def test_each_rounding_is_what_it_says(qwen2: LoadedModel, gathered: Moments) -> None:
    name = "model.layers.0.self_attn.q_proj"
    weight = qwen2.weight(name)
    nearest = Rounder(qwen2).store(name, INT4)
    assert torch.equal(nearest.dequantize(), rtn(weight, INT4).dequantize())
    feedback = Rounder(qwen2, "gptq", gathered).store(name, INT4)
    assert torch.equal(feedback.dequantize(), gptq(weight, INT4, gathered.of(name)).dequantize())
    assert torch.equal(Rounder(qwen2, "gptq", gathered).store(name, FP16).dequantize(), weight.half().float())


def test_auto_loses_least_on_other_tokens_row_by_row(qwen2: LoadedModel, gathered: Moments, tmp_path: Path) -> None:
    judge = gather_moments(qwen2, tokens(1), tmp_path / "judge", inputs=INPUTS)
    name = "model.layers.2.mlp.gate_proj"
    weight, seen = qwen2.weight(name), judge.of(name)
    errors = {
        how: row_errors(weight, Rounder(qwen2, how, gathered, judge).store(name, QuantFormat(3)), seen)
        for how in rounding.ROUNDINGS
    }
    least = torch.stack([errors["rtn"], errors["search"], errors["gptq"]]).amin(0)
    torch.testing.assert_close(errors["auto"], least)


def test_the_cache_keeps_tensors_of_the_same_inputs(
    qwen2: LoadedModel, gathered: Moments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.0.mlp.up_proj"
    cache = StoredCache(tmp_path / "tensors", INPUTS)
    for fmt in (INT4, QuantFormat(3, 32, symmetric=True), FP16):
        first = Rounder(qwen2, "gptq", gathered, cache=cache).store(name, fmt)
        with monkeypatch.context() as patch:
            patch.setattr(rounding, "gptq", None)
            again = Rounder(qwen2, "gptq", gathered, cache=cache).store(name, fmt)
        assert torch.equal(first.dequantize(), again.dequantize())
        assert first.weight_bytes() + first.alpha_bytes() == again.weight_bytes() + again.alpha_bytes()
    other = StoredCache(cache.folder, INPUTS | {"model": "b"})
    monkeypatch.setattr(rounding, "gptq", lambda *_: rtn(qwen2.weight(name), INT4))
    computed = Rounder(qwen2, "gptq", gathered, cache=other).store(name, INT4)
    assert torch.equal(computed.dequantize(), rtn(qwen2.weight(name), INT4).dequantize())


def test_best_rows_mixes_integers_of_one_format() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    good = rtn(weight, INT4)
    assert isinstance(good, IntTensor)
    spoiled = replace(good, codes=torch.cat([good.codes[:2], 15 - good.codes[2:]]))
    other = replace(good, codes=torch.cat([15 - good.codes[:2], good.codes[2:]]))
    assert torch.equal(best_rows(weight, (spoiled, other), torch.eye(64)).dequantize(), good.dequantize())
    with pytest.raises(TypeError):
        best_rows(weight, (rtn(weight, FP16), good), torch.eye(64))
