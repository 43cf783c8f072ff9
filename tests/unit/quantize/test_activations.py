from __future__ import annotations

import torch

from qplan.quantize import int8_decode, int8_prefill


def test_prefill_is_symmetric_per_token() -> None:
    x = torch.tensor([[-1.0, 0.5, 0.003], [127.0, -63.6, 0.2]])
    expected = torch.tensor([[-127, 64, 0], [127, -64, 0]]) * torch.tensor([[1 / 127], [1.0]])
    torch.testing.assert_close(int8_prefill(x), expected)


def test_decode_uses_the_whole_range_of_a_one_sided_token() -> None:
    x = torch.rand(4, 512, generator=torch.Generator().manual_seed(0)) + 3
    symmetric = (int8_prefill(x) - x).abs().max()
    asymmetric = (int8_decode(x) - x).abs().max()
    assert asymmetric < symmetric / 4


def test_silent_tokens_stay_silent() -> None:
    zeros = torch.zeros(2, 8)
    assert torch.equal(int8_prefill(zeros), zeros)
    assert torch.equal(int8_decode(zeros), zeros)
