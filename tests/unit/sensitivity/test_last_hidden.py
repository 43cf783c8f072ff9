"""Comparing hidden states before a linear head is comparing logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qplan.errors import MeasurementError
from qplan.sensitivity.last_hidden import LastHidden
from qplan.sensitivity.metrics import compare, reference_of

ROWS, LENGTH, HIDDEN, VOCABULARY = 2, 9, 24, 70


def head_and_states(seed: int, *, bias: bool) -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, hidden states ``[rows, length, hidden]`` and token ids ``[rows, length]``."""
    torch.manual_seed(seed)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias).requires_grad_(requires_grad=False)
    return head, torch.randn(ROWS, LENGTH, HIDDEN), torch.randint(0, VOCABULARY, (ROWS, LENGTH))


@given(st.integers(0, 2**31), st.sampled_from([1e-4, 1e-2, 1.0]), st.booleans())
def test_it_is_the_comparison_of_logits(seed: int, size: float, bias: bool) -> None:  # noqa: FBT001
    head, hidden, tokens = head_and_states(seed, bias=bias)
    other = hidden + size * torch.randn_like(hidden)
    # in doubles nothing cancels: the oracle is the definition
    exact = nn.functional.log_softmax(nn.functional.linear(hidden.double(), head.weight.double()), -1)
    shift = nn.functional.linear(other.double(), head.weight.double())
    if bias:
        exact = nn.functional.log_softmax(head.double()(hidden.double()), -1)
        shift = head(other.double())
        head.float()
    variant = nn.functional.log_softmax(shift, -1)
    kl = (exact.exp() * (exact - variant)).sum(-1).flatten()
    found = LastHidden.of(reference_of(head(hidden), tokens), hidden, head).compare(other)
    assert torch.allclose(found.kl, kl, rtol=2e-3, atol=1e-12)
    direct = compare(reference_of(head(hidden), tokens), head(other))
    assert found.nll_nats == pytest.approx(direct.nll_nats, rel=1e-5)
    assert torch.equal(found.same_top, exact.argmax(-1).flatten() == variant.argmax(-1).flatten())


def test_the_unchanged_model_loses_exactly_nothing() -> None:
    head, hidden, tokens = head_and_states(0, bias=True)
    stats = LastHidden.of(reference_of(head(hidden), tokens), hidden, head).compare(hidden)
    assert stats.kl_nats == 0
    assert stats.top1 == 1


def test_a_top_that_only_others_overtake_is_seen() -> None:
    # token 2 starts last and ends first, beyond the runner-up's margin
    head = nn.Linear(3, 3, bias=False).requires_grad_(requires_grad=False)
    head.weight.copy_(torch.eye(3))
    hidden, other = torch.tensor([[[3.0, 2.0, 0.0]]]), torch.tensor([[[3.0, 2.0, 4.0]]])
    reference = LastHidden.of(reference_of(head(hidden), torch.tensor([[0]])), hidden, head)
    assert reference.compare(other).same_top.tolist() == [False]
    # it grows by more than that margin, and stays below
    assert reference.compare(torch.tensor([[[3.0, 2.0, 2.5]]])).same_top.tolist() == [True]


def test_what_cannot_be_compared_is_refused() -> None:
    head, hidden, tokens = head_and_states(0, bias=False)
    reference = LastHidden.of(reference_of(head(hidden), tokens), hidden, head)
    with pytest.raises(MeasurementError, match="cannot be compared"):
        reference.compare(hidden[:, :-1])
    with pytest.raises(MeasurementError, match="2 of 18 tokens have a loss that is not finite"):
        reference.compare(hidden.index_fill(1, torch.tensor([3]), float("inf")))
