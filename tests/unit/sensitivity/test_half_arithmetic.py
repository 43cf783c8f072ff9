"""fp16 as MNN computes with it on ARM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from qplan.formats import FP16, INT8
from qplan.model.load import LoadedModel
from qplan.rounding import Int8Activations
from qplan.sensitivity.half_arithmetic import half_values, in_half
from qplan.sensitivity.half_products import accumulate_half
from qplan.sensitivity.joint import Variant, variant_losses


def test_products_add_up_one_after_the_other_each_rounded_once() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((3, 40)).astype(np.float16)
    weight = generator.standard_normal((5, 40)).astype(np.float16)
    expected = np.zeros((3, 5), np.float16)
    for k in range(40):  # a fused multiplication and addition: exact in float64, then rounded
        exact = expected.astype(np.float64) + np.outer(inputs[:, k].astype(np.float64), weight[:, k].astype(np.float64))
        expected = exact.astype(np.float16)
    found = accumulate_half(torch.from_numpy(inputs).float(), torch.from_numpy(weight).float())
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), expected.astype(np.float32))


def test_attention_is_close_to_exact_and_masks_what_comes_later(qwen2: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (half_values(torch.randn(1, 2, 6, 8, generator=generator)) for _ in range(3))
    exact = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    with in_half(qwen2, 0):
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mask = torch.ones(6, 6, dtype=torch.bool).tril()
        masked = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        added = torch.zeros(6, 6).masked_fill(~mask, float("-inf"))
        summed = functional.scaled_dot_product_attention(query, key, value, attn_mask=added)
    assert torch.equal(found, half_values(found))
    assert 0 < (found - exact).abs().max() < 5e-3
    assert torch.equal(found, masked)
    assert torch.equal(found, summed)


def test_a_window_may_leave_out_whole_blocks_of_keys(qwen2: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (half_values(torch.randn(1, 2, 140, 8, generator=generator)) for _ in range(3))
    places = torch.arange(140)
    ago = places.unsqueeze(1) - places
    window = (ago >= 0) & (ago < 8)  # the last tokens see nothing of the first two blocks of 64
    exact = functional.scaled_dot_product_attention(query, key, value, attn_mask=window)
    with in_half(qwen2, 0):
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=window)
    assert (found - exact).abs().max() < 5e-3


def test_a_model_in_fp16_loses_little_and_more_where_products_of_floats_add_up(qwen2: LoadedModel) -> None:
    tokens = torch.randint(0, qwen2.card.vocabulary, (2, 24), generator=torch.Generator().manual_seed(0))
    floats = {spec.name: FP16 for spec in qwen2.card.tensors}
    integers = {spec.name: INT8.resolve(spec.in_features) for spec in qwen2.card.tensors}
    half, exact = Int8Activations("prefill", 0, "arm-fp16"), Int8Activations("prefill", 0, "arm")
    found = variant_losses(
        qwen2,
        tokens,
        {
            "fp16": Variant(floats, "low", half),
            "fp32": Variant(floats, "low", exact),
            "int8 in fp16": Variant(integers, "low", half),
            "int8": Variant(integers, "low", exact),
        },
    )
    losses = {label: stats.kl_nats for label, stats in found.items()}
    assert losses["fp32"] < losses["fp16"] < losses["int8"]
    assert losses["int8 in fp16"] == pytest.approx(losses["int8"], rel=0.2)


def test_everything_is_as_before_after_the_block(qwen2: LoadedModel) -> None:
    tokens = torch.arange(12).view(1, 12)
    with torch.no_grad():
        before = qwen2.model(tokens).logits
        with in_half(qwen2, len(qwen2.layers)):
            inside = qwen2.model(tokens).logits
        after = qwen2.model(tokens).logits
    assert torch.equal(before, after)
    assert torch.equal(inside, half_values(inside))
    assert not torch.equal(inside, before)
