"""Weights go in for a block and come out to the bit."""

from __future__ import annotations

import pytest
import torch

from qplan.model.load import LoadedModel
from qplan.model.replace import with_first_layers, with_weights
from qplan.verify.lens import lens_logits

TOKENS = torch.arange(12).view(2, 6)


def test_the_model_is_restored(tiny: LoadedModel) -> None:
    before = tiny.logits(TOKENS)
    parameters = dict(tiny.model.named_parameters(remove_duplicate=False))
    changed = {spec.name: tiny.weight(spec.name) * 1.5 for spec in tiny.card.tensors}
    with with_weights(tiny, changed):
        assert not torch.allclose(tiny.logits(TOKENS), before)
        for name, weight in changed.items():
            assert torch.equal(tiny.weight(name), weight)
    assert torch.equal(tiny.logits(TOKENS), before)
    after = dict(tiny.model.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in parameters.items())


def test_layers_after_the_first_are_left_out(tiny: LoadedModel) -> None:
    before, layers = tiny.logits(TOKENS), tiny.layers
    for count, expected in enumerate(lens_logits(tiny, TOKENS[0].tolist())):
        with with_first_layers(tiny, count):
            assert torch.allclose(tiny.logits(TOKENS)[0], torch.from_numpy(expected), atol=1e-5)
    assert torch.equal(tiny.logits(TOKENS), before)
    assert all(one is other for one, other in zip(tiny.layers, layers, strict=True))


def test_restored_after_an_error(qwen2: LoadedModel) -> None:
    before = qwen2.head.weight
    with pytest.raises(RuntimeError), with_weights(qwen2, {"lm_head": qwen2.weight("lm_head") * 2}):
        raise RuntimeError
    assert qwen2.head.weight is before
    assert qwen2.embedding.weight is before


def test_a_tied_head_changes_the_embedding_too(qwen2: LoadedModel, llama: LoadedModel) -> None:
    with with_weights(qwen2, {"lm_head": torch.zeros_like(qwen2.weight("lm_head"))}):
        assert not qwen2.embedding.weight.any()
    with with_weights(llama, {"lm_head": torch.zeros_like(llama.weight("lm_head"))}):
        assert llama.embedding.weight.any()


def test_one_part_of_a_fused_matrix(tiny_models: dict[str, LoadedModel]) -> None:
    phi3 = tiny_models["phi3"]
    names = [f"model.layers.1.self_attn.{p}_proj" for p in "qkv"]
    query, key, value = (phi3.weight(name).clone() for name in names)
    with with_weights(phi3, {names[1]: key * 2}):
        assert torch.equal(phi3.weight(names[0]), query)
        assert torch.equal(phi3.weight(names[1]), key * 2)
        assert torch.equal(phi3.weight(names[2]), value)


def test_a_wrong_shape_is_refused(qwen2: LoadedModel) -> None:
    with pytest.raises(ValueError, match="expected"), with_weights(qwen2, {"lm_head": torch.zeros(2, 2)}):
        pass
