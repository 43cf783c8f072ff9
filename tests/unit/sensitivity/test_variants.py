"""Variants compute with what MNN stores and with the activations that its engine uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from qplan.errors import InputError
from qplan.formats import FP16, INT4, INT8, QuantFormat
from qplan.model.load import LoadedModel
from qplan.rounding import EnginePath, Int8Activations, IntTensor, int8_prefill, rtn
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import StoredCache
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats
from qplan.settings import DynamicOption

TOKENS = torch.arange(12).view(2, 6)


def _layer_input(loaded: LoadedModel) -> torch.Tensor:
    return torch.randn(2, 3, loaded.embedding.embedding_dim, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj", "lm_head"])
@pytest.mark.parametrize("path", ["prefill", "decode"])
@pytest.mark.parametrize("option", [0, 2])
def test_low_quantizes_the_input_of_integer_tensors_only(
    qwen2: LoadedModel, name: str, path: EnginePath, option: DynamicOption
) -> None:
    x, linear = _layer_input(qwen2), qwen2.linear(name)
    activations = Int8Activations(path, option)
    rounded = activations.round(x, activations.block(INT8))
    for fmt, memory, seen in ((INT8, "low", rounded), (INT8, "normal", x), (FP16, "low", x)):
        weight = rtn(qwen2.weight(name), fmt).dequantize()
        with apply_formats(qwen2, {name: fmt}, memory, activations):  # type: ignore[arg-type]
            assert torch.equal(linear(x), functional.linear(seen, weight, linear.bias))
    assert torch.equal(linear(x), functional.linear(x, linear.weight, linear.bias))


def test_parts_of_a_fused_matrix_see_their_own_activations(tiny_models: dict[str, LoadedModel]) -> None:
    phi3 = tiny_models["phi3"]
    names = [f"model.layers.0.self_attn.{p}_proj" for p in "qkv"]
    x, linear = _layer_input(phi3), phi3.linear(names[0])
    formats = {names[0]: INT8, names[2]: FP16}
    with torch.no_grad(), apply_formats(phi3, formats, "low"):
        output = linear(x)
    query = functional.linear(int8_prefill(x), rtn(phi3.weight(names[0]), INT8).dequantize())
    value = functional.linear(x, rtn(phi3.weight(names[2]), FP16).dequantize())
    torch.testing.assert_close(output[..., :64], query)
    torch.testing.assert_close(output[..., 64:96], functional.linear(x, phi3.weight(names[1])))
    torch.testing.assert_close(output[..., 96:], value)


def test_parts_of_a_fused_matrix_have_activations_of_their_own_blocks(tiny_models: dict[str, LoadedModel]) -> None:
    phi3 = tiny_models["phi3"]
    names = [f"model.layers.0.self_attn.{p}_proj" for p in "qkv"]
    x, linear = _layer_input(phi3), phi3.linear(names[0])
    formats = {names[0]: INT8, names[1]: QuantFormat(8, 32), names[2]: QuantFormat(8, 0)}
    activations = Int8Activations(dynamic_option=2)
    with torch.no_grad(), apply_formats(phi3, formats, "low", activations):
        output = linear(x)
    for (name, fmt), part in zip(formats.items(), output.split([64, 32, 32], -1), strict=True):
        rounded = activations.round(x, fmt.block)
        torch.testing.assert_close(part, functional.linear(rounded, rtn(phi3.weight(name), fmt).dequantize()))


def test_blocks_that_the_engine_garbles_are_refused(qwen2: LoadedModel) -> None:
    formats = {"model.layers.0.mlp.up_proj": QuantFormat(4, 4)}
    with apply_formats(qwen2, formats, "low"):
        pass
    with (
        pytest.raises(InputError, match=r"int4-b4 under dynamic_option 2 is garbage"),
        apply_formats(qwen2, formats, "low", Int8Activations(dynamic_option=2)),
    ):
        pass


def test_a_tied_tensor_is_looked_up_as_stored(qwen2: LoadedModel) -> None:
    stored = rtn(qwen2.weight("lm_head"), INT4).dequantize()
    with apply_formats(qwen2, {"lm_head": INT4}, "low"):
        assert torch.equal(qwen2.embedding(TOKENS), functional.embedding(TOKENS, stored))


def test_an_untied_embedding_is_bfloat16_on_the_engine(llama: LoadedModel) -> None:
    exact = llama.embedding(TOKENS)
    with apply_formats(llama, {}, "low", engine_embedding=True):
        assert torch.equal(llama.embedding(TOKENS), exact.bfloat16().float())
    assert torch.equal(llama.embedding(TOKENS), exact)


def test_a_plan_is_all_its_tensors_at_once_and_leaves_no_trace(tiny: LoadedModel) -> None:
    before = tiny.logits(TOKENS)
    formats = {spec.name: INT8.resolve(spec.in_features) for spec in tiny.card.tensors}
    with apply_formats(tiny, formats, "low"):
        low = tiny.logits(TOKENS)
    with apply_formats(tiny, formats, "normal"):
        normal = tiny.logits(TOKENS)
    assert torch.equal(tiny.logits(TOKENS), before)
    assert not torch.equal(low, normal)
    assert (normal - before).norm() < (low - before).norm() < 0.2 * before.norm()


def test_an_impossible_format_is_refused(llama: LoadedModel, qwen2: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"down_proj \[64, 172\] cannot be int8"):
        StoredWeights(llama).get("model.layers.0.mlp.down_proj", INT8)
    with pytest.raises(InputError, match=r"lm_head .* cannot be int3"):
        StoredWeights(qwen2).get("lm_head", QuantFormat(3))


def test_stored_weights_are_kept_within_the_limit(qwen2: LoadedModel) -> None:
    names = [spec.name for spec in qwen2.card.tensors[:2]]
    first = qwen2.weight(names[0]).nbytes
    stored = StoredWeights(qwen2, limit_bytes=first)
    assert stored.get(names[0], INT4) is stored.get(names[0], INT4)
    assert stored.get(names[1], INT4) is not stored.get(names[1], INT4)


@pytest.mark.parametrize("how", ["rtn", "hqq", "cached"])
def test_rows_are_those_of_the_whole(qwen2: LoadedModel, how: str, tmp_path: Path) -> None:
    cache = StoredCache(tmp_path, {"of": "a test"}) if how == "cached" else None
    rounder = Rounder(qwen2, "rtn" if how == "rtn" else "hqq", cache=cache)
    stored, name = StoredWeights(qwen2, rounder, limit_bytes=0), "model.layers.1.self_attn.v_proj"
    for fmt in (INT4, INT8, FP16):
        whole = stored.get(name, fmt)
        for rows in (slice(3, 9), slice(0, 1), slice(None)):
            assert torch.equal(stored.rows(name, fmt, rows), whole[rows])


def test_rows_of_a_large_tensor_cost_no_more_than_themselves(
    qwen2: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary's rows are read in a thousand pieces: no piece may round, or read, the whole."""
    shapes: list[tuple[int, ...]] = []
    dequantize = IntTensor.dequantize

    def noted(tensor: IntTensor) -> Tensor:
        shapes.append(tuple(tensor.codes.shape))
        return dequantize(tensor)

    rounder = Rounder(qwen2, "hqq", cache=StoredCache(tmp_path, {"of": "a test"}))
    rounder.store("lm_head", INT8)
    monkeypatch.setattr(IntTensor, "dequantize", noted)
    monkeypatch.setattr(Rounder, "_round", None)
    for one in (rounder, Rounder(qwen2), None):
        StoredWeights(qwen2, one, limit_bytes=0).rows("lm_head", INT8, slice(5, 8))
    assert shapes == 3 * [(3, qwen2.weight("lm_head").shape[1])]


def test_unchanged_means_to_the_bit(qwen2: LoadedModel) -> None:
    name = "model.layers.0.mlp.up_proj"
    stored = StoredWeights(qwen2)
    assert not stored.unchanged(name, FP16)
    assert stored.unchanged(name, QuantFormat(32, 0))
