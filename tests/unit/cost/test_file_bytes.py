"""Predicted bytes against files that llmexport 0.0.5 wrote."""

from __future__ import annotations

import pytest

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes, bits_per_weight, estimate_fixed, file_bytes
from qplan.errors import QplanError
from qplan.formats import FP16, QuantFormat
from qplan.tensors import Role, TensorSpec


def card(*, hidden: int, inner: int, key_value: int, layers: int, vocabulary: int, tied: bool, bias: bool) -> ModelCard:
    """A Qwen2 or Llama by its sizes."""
    shapes = {
        "self_attn.q_proj": (hidden, hidden, bias),
        "self_attn.k_proj": (key_value, hidden, bias),
        "self_attn.v_proj": (key_value, hidden, bias),
        "self_attn.o_proj": (hidden, hidden, False),
        "mlp.gate_proj": (inner, hidden, False),
        "mlp.up_proj": (inner, hidden, False),
        "mlp.down_proj": (hidden, inner, False),
    }
    tensors = [
        TensorSpec(
            f"model.layers.{layer}.{name}",
            f"/layers.{layer}/{name.replace('.', '/')}/Linear",
            layer,
            name.split(".")[1],
            Role.MLP if name.startswith("mlp") else Role.ATTENTION,
            *shape,
        )
        for layer in range(layers)
        for name, shape in shapes.items()
    ]
    tensors.append(
        TensorSpec(
            "lm_head", "/lm/lm_head/Linear", None, "lm_head", Role.HEAD, vocabulary, hidden, bias=False, tied=tied
        )
    )
    norms = (2 * layers + 1) * hidden
    embedding = 0 if tied else vocabulary * hidden
    parameters = sum(t.weights + t.bias * t.out_features for t in tensors) + norms + embedding
    return ModelCard("m", "0", "M", "m", parameters, vocabulary, 2048, tuple(tensors), embedding, norms)


QWEN2_8M = card(hidden=256, inner=704, key_value=128, layers=8, vocabulary=8192, tied=True, bias=True)
QWEN2_12 = card(hidden=64, inner=128, key_value=32, layers=12, vocabulary=8192, tied=True, bias=True)
LLAMA_4 = card(hidden=64, inner=128, key_value=32, layers=4, vocabulary=8192, tied=False, bias=False)
WIDE4, WIDE8 = QuantFormat(4, scale_bits=32), QuantFormat(8, scale_bits=32)


def int4_head8(model: ModelCard) -> dict[str, QuantFormat]:
    return {t.name: WIDE8 if t.role is Role.HEAD else WIDE4 for t in model.tensors}


def everywhere(model: ModelCard, fmt: QuantFormat) -> dict[str, QuantFormat]:
    return {t.name: fmt for t in model.tensors}


def test_weight_file_to_the_byte() -> None:
    fixed = estimate_fixed(QWEN2_8M)
    assert file_bytes(QWEN2_8M, everywhere(QWEN2_8M, FP16), fixed).weight == 16_041_984
    # mnn-facts.md: totals of exports with fp32 scales
    assert file_bytes(QWEN2_8M, everywhere(QWEN2_8M, WIDE8), fixed).total == 9_193_774
    assert file_bytes(QWEN2_8M, int4_head8(QWEN2_8M), fixed).total == 6_231_214


@pytest.mark.parametrize(
    ("model", "graph", "fp16_weight", "int4_weight", "embedding"),
    [(QWEN2_12, 196_120, 1_952_256, 887_358, 0), (LLAMA_4, 69_896, 1_348_096, 687_470, 1_048_576)],
)
def test_exports_of_other_shapes(
    model: ModelCard, graph: int, fp16_weight: int, int4_weight: int, embedding: int
) -> None:
    fixed = estimate_fixed(model)
    assert file_bytes(model, everywhere(model, FP16), fixed).weight == fp16_weight
    assert file_bytes(model, int4_head8(model), fixed).weight == int4_weight
    assert fixed.embedding == embedding
    assert fixed.graph == pytest.approx(graph, rel=0.01)
    assert not fixed.exact


def test_bits_per_weight_counts_all_but_the_graph() -> None:
    files = file_bytes(QWEN2_8M, everywhere(QWEN2_8M, FP16), estimate_fixed(QWEN2_8M))
    assert bits_per_weight(files, QWEN2_8M) == 8 * 16_041_984 / QWEN2_8M.parameters


def test_a_missing_or_undivided_tensor_is_an_error() -> None:
    fixed = FixedBytes(0, 0, 0, exact=True)
    with pytest.raises(QplanError, match=r"no format for model\.layers.0\.self_attn\.q_proj"):
        file_bytes(QWEN2_8M, {}, fixed)
    with pytest.raises(QplanError, match="does not divide rows of 256"):
        file_bytes(QWEN2_8M, everywhere(QWEN2_8M, QuantFormat(4, 96)), fixed)
