"""What the head reads after fewer layers, in torch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from qplan.model.load import LoadedModel
from qplan.verify.lens import lens_logits

IDS = [3, 141, 59, 26, 5]


def test_after_all_layers_it_is_the_model_and_after_none_the_embedding(tiny: LoadedModel) -> None:
    logits = lens_logits(tiny, IDS)
    assert len(logits) == len(tiny.layers) + 1
    tokens = torch.tensor([IDS])
    np.testing.assert_array_equal(logits[-1], tiny.logits(tokens)[0].numpy())
    for fewer, more in pairwise(logits):
        assert not np.allclose(fewer, more)


def test_the_stream_before_the_first_layer_is_the_embedding(qwen2: LoadedModel) -> None:
    norm = qwen2.model.get_submodule("model.norm")
    expected = qwen2.head(norm(qwen2.embedding(torch.tensor([IDS]))))[0]
    assert lens_logits(qwen2, IDS)[0] == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-6)


def test_hooks_are_gone_afterwards(llama: LoadedModel) -> None:
    tokens = torch.tensor([IDS])
    before = llama.logits(tokens)
    lens_logits(llama, IDS)
    assert torch.equal(llama.logits(tokens), before)
    assert not any(module._forward_pre_hooks for module in llama.model.modules())
