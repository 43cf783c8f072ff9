"""Plans go through one layer after the other: the same losses, a few weights in memory, nothing computed twice."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from qplan.formats import INT4, INT8, QuantFormat
from qplan.model.layerwise import run_layer
from qplan.model.load import LoadedModel, load_model
from qplan.rounding import Int8Activations, IntTensor
from qplan.rounding import stored as storage
from qplan.run.calibration import CalibrationSet
from qplan.sensitivity.joint import Variant, joint_losses, variant_losses
from qplan.sensitivity.kept_logits import kept_logits
from qplan.sensitivity.metrics import compare, join, reference_of
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats
from qplan.settings import MEMORIES


def uniform(loaded: LoadedModel, fmt: QuantFormat) -> dict[str, QuantFormat]:
    return {spec.name: fmt.resolve(spec.in_features) for spec in loaded.card.tensors}


def by_whole_passes(loaded: LoadedModel, batches: Sequence[Tensor], variant: Variant) -> Tensor:
    """KL of every token, from passes of the whole model."""
    parts = []
    for batch in batches:
        reference = reference_of(loaded.logits(batch), batch)
        with apply_formats(loaded, variant.formats, variant.memory, variant.activations, engine_embedding=True):
            parts.append(compare(reference, loaded.logits(batch)))
    return join(parts).kl


def test_layer_by_layer_computes_what_the_whole_model_does(tiny: LoadedModel, calibration: CalibrationSet) -> None:
    """Bit for bit, also for variants that are the same up to a layer, or differ in their activations alone."""
    plain = uniform(tiny, INT4)
    last, head = tiny.card.tensors[-2].name, tiny.card.tensors[-1].name
    variants = {
        "low": Variant(plain),
        "normal": Variant(plain, "normal"),
        "decode": Variant(plain, "low", Int8Activations("decode")),
        "last": Variant(plain | {last: INT8.resolve(tiny.card.tensor(last).in_features)}),
        "head": Variant({head: INT8.resolve(tiny.card.tensor(head).in_features)}),
    }
    tokens = torch.from_numpy(calibration.heldout)
    found = variant_losses(tiny, tokens, variants, batch_size=2, engine_embedding=True)
    for label, variant in variants.items():
        assert torch.equal(found[label].kl, by_whole_passes(tiny, tokens.split(2), variant)), label


def test_a_kept_reference_gives_the_same_losses(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    rows = calibration.heldout
    plans = {"int8": uniform(qwen2, INT8), "exact": {}}
    alone = joint_losses(qwen2, torch.from_numpy(rows[1:]), plans, batch_size=1)
    with kept_logits(qwen2, rows) as whole:
        kept = whole.take(slice(1, None))
        found = joint_losses(qwen2, torch.from_numpy(rows[1:]), plans, batch_size=1, reference=kept)
        with pytest.raises(ValueError, match="other tokens"):
            joint_losses(qwen2, torch.from_numpy(rows[1:]), plans, reference=whole)
    for label, stats in alone.items():
        assert torch.equal(found[label].kl, stats.kl)
        assert torch.equal(found[label].nll, stats.nll)
    assert found["exact"].kl_nats == 0


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many weights were in memory whenever one was read back from storage."""
    living: weakref.WeakSet[Tensor] = weakref.WeakSet()
    seen: list[int] = []
    dequantize = IntTensor.dequantize

    def noted(tensor: IntTensor) -> Tensor:
        value = dequantize(tensor)
        living.add(value)
        seen.append(len(living))
        return value

    monkeypatch.setattr(IntTensor, "dequantize", noted)
    return seen


def test_only_a_layers_weights_are_in_memory(qwen2: LoadedModel, calibration: CalibrationSet, alive: list[int]) -> None:
    tokens = torch.from_numpy(calibration.heldout)
    formats = uniform(qwen2, INT4)
    layer = Counter(spec.layer for spec in qwen2.card.tensors)
    variant_losses(qwen2, tokens, {"low": Variant(formats), "normal": Variant(formats, "normal")}, batch_size=1)
    # the tied head's goes along in the first layer, where tokens are looked up, and comes back at the end
    assert len(alive) == len(formats) + 1
    assert max(alive) <= max(layer.values()) + 1


def test_a_plan_in_a_whole_pass_keeps_to_the_limit(qwen2: LoadedModel, alive: list[int]) -> None:
    formats = uniform(qwen2, INT4)
    stored = StoredWeights(qwen2, limit_bytes=0)
    parameters = dict(qwen2.model.named_parameters(remove_duplicate=False))
    with apply_formats(qwen2, formats, "low", stored=stored):
        qwen2.logits(torch.arange(12).view(2, 6))
    assert max(alive) <= 2
    assert all(dict(qwen2.model.named_parameters(remove_duplicate=False))[n] is p for n, p in parameters.items())
    assert not any("forward" in vars(module) for module in qwen2.model.modules())


def test_what_variants_share_is_computed_once(
    qwen2: LoadedModel, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = uniform(qwen2, INT4)
    moved = [spec.name for spec in qwen2.card.tensors if spec.layer == len(qwen2.layers) - 1]
    variants = {"": Variant(formats)} | {name: Variant(formats | {name: INT8}) for name in moved}
    calls: list[int] = []

    def noted(loaded: LoadedModel, index: int, batch: Tensor, given: Any) -> Any:
        calls.append(index)
        return run_layer(loaded, index, batch, given)

    monkeypatch.setattr("qplan.sensitivity.joint.run_layer", noted)
    rows = torch.from_numpy(calibration.heldout)
    variant_losses(qwen2, rows, variants, batch_size=len(rows))
    counts = Counter(calls)
    assert counts[0] == 2  # FP32 and all variants
    assert counts[len(qwen2.layers) - 1] == 1 + len(variants)


@pytest.mark.parametrize("name", ["qwen2", "phi3", "llama"])
def test_large_matrices_are_multiplied_some_rows_at_a_time(
    tiny_models: dict[str, LoadedModel], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, tokens = tiny_models[name], torch.arange(12).view(2, 6)
    formats = {name: fmt for index, (name, fmt) in enumerate(uniform(loaded, INT8).items()) if index % 5}
    with apply_formats(loaded, formats, "low", engine_embedding=True):
        whole = loaded.logits(tokens)
    monkeypatch.setattr(storage, "LARGE_ELEMENTS", 2000)
    monkeypatch.setattr(storage, "ROWS_TOGETHER", 8)
    stored = StoredWeights(loaded, limit_bytes=0)
    with apply_formats(loaded, formats, "low", stored=stored, engine_embedding=True):
        parts = loaded.logits(tokens)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    head = loaded.architecture.head
    assert len(list(stored.pieces(head, INT8))) > 1
    assert not stored.unchanged(head, INT8)
    assert stored.unchanged(head, QuantFormat(32, 0))


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "phi3"])
def test_a_streamed_model_loses_the_same(
    tiny_models: dict[str, LoadedModel], name: str, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_models[name]
    streamed = load_model(str(loaded.folder), stream=True)
    tokens = torch.from_numpy(calibration.heldout)
    variants: dict[str, Variant] = {memory: Variant(uniform(loaded, INT8), memory) for memory in MEMORIES}
    expected = variant_losses(loaded, tokens, variants, batch_size=1, engine_embedding=True)
    with kept_logits(streamed, calibration.heldout) as kept:
        found = variant_losses(streamed, tokens, variants, batch_size=1, engine_embedding=True, reference=kept)
        for label, stats in expected.items():
            assert torch.equal(found[label].kl, stats.kl)
        monkeypatch.setattr(storage, "LARGE_ELEMENTS", 2000)
        monkeypatch.setattr(storage, "ROWS_TOGETHER", 8)
        found = variant_losses(streamed, tokens, variants, batch_size=1, engine_embedding=True, reference=kept)
    for label, stats in expected.items():
        assert found[label].kl_nats == pytest.approx(stats.kl_nats, rel=1e-3)
    assert not any("forward" in vars(module) for module in streamed.model.modules())
