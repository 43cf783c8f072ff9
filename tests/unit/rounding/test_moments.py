from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qplan.errors import MeasurementError
from qplan.model.backward import sampled_backward
from qplan.model.load import LoadedModel
from qplan.model.replace import with_forward, with_weights
from qplan.rounding import moments
from qplan.rounding.moments import Moments, gather_moments
from qplan.sensitivity.metrics import compare, reference_of

INPUTS = {"model": "a", "tokens": "b"}


def tokens(seed: int, rows: int = 6) -> Tensor:
    return torch.randint(3, 300, (rows, 32), generator=torch.Generator().manual_seed(seed))


def gather(loaded: LoadedModel, folder: Path) -> Moments:
    return gather_moments(loaded, tokens(0), folder, inputs=INPUTS)


@pytest.fixture
def gathered(llama: LoadedModel, tmp_path: Path) -> Moments:
    return gather(llama, tmp_path / "moments")


def test_moments_are_those_of_the_inputs(tiny: LoadedModel, tmp_path: Path) -> None:
    tied = tiny.card.tensor("lm_head").tied
    names = [spec.name for spec in tiny.card.tensors if not (tied and spec.name == "lm_head")]
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, args: seen[name].append(args[0].flatten(0, -2))

    hooks = [tiny.linear(name).register_forward_pre_hook(note(name)) for name in names]
    tiny.logits(tokens(0))
    for hook in hooks:
        hook.remove()
    found = gather(tiny, tmp_path / "moments")
    for name in names:
        rows = torch.cat(seen[name]).double()
        rows = rows[rows.any(1)]  # experts' tokens are filled up with zeros
        torch.testing.assert_close(found.of(name), (rows.T @ rows / len(rows)).float(), rtol=1e-4, atol=1e-5)
        assert found.tokens[name] == len(rows)


def test_tensors_with_one_input_share_one_matrix(gathered: Moments) -> None:
    key = gathered.key_of
    assert key["model.layers.0.self_attn.q_proj"] == key["model.layers.0.self_attn.v_proj"]
    assert key["model.layers.0.mlp.gate_proj"] == key["model.layers.0.mlp.up_proj"]
    assert len(set(key.values())) == 3 * 4 + 1
    assert len(list(gathered.folder.glob("*.safetensors"))) == 3 * 4 + 1


def test_every_layer_computes_once_per_batch(llama: LoadedModel, tmp_path: Path) -> None:
    runs: list[int] = []
    hooks = [
        layer.mlp.down_proj.register_forward_hook(lambda *_, index=index: runs.append(index))  # type: ignore[union-attr]
        for index, layer in enumerate(llama.layers)
    ]
    seen: list[tuple[int, int]] = []
    try:
        gather_moments(
            llama, tokens(0), tmp_path / "m", inputs=INPUTS, progress=lambda done, total: seen.append((done, total))
        )
    finally:
        for hook in hooks:
            hook.remove()
    assert runs == [0, 0, 1, 1, 2, 2]
    assert seen == [(done, 8) for done in range(1, 9)]


def test_moments_of_other_inputs_are_not_used(gathered: Moments) -> None:
    assert Moments.open(gathered.folder, INPUTS) == gathered
    assert Moments.open(gathered.folder, INPUTS | {"tokens": "c"}) is None
    assert Moments.open(gathered.folder.with_name("none"), INPUTS) is None


def test_inputs_that_are_not_finite_are_an_error(llama: LoadedModel, tmp_path: Path) -> None:
    linear = llama.linear("model.layers.0.mlp.up_proj")
    hook = linear.register_forward_pre_hook(lambda _, args: (args[0] * torch.nan,), prepend=True)
    try:
        with pytest.raises(MeasurementError, match="not finite"):
            gather(llama, tmp_path / "moments")
    finally:
        hook.remove()
    assert Moments.open(tmp_path / "moments", INPUTS) is None


def test_a_tied_head_counts_both_of_its_uses(qwen2: LoadedModel, tmp_path: Path) -> None:
    """Small random errors of the matrix: the moments must predict their KL, in the logits and in the lookups."""
    head = "lm_head"
    ids = tokens(0, rows=24)
    found = gather_moments(qwen2, ids, tmp_path / "m", inputs=INPUTS).of(head)
    seen: list[Tensor] = []
    hook = qwen2.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    logits = qwen2.logits(ids)
    hook.remove()
    matrix = torch.cat(seen).T @ torch.cat(seen) / ids.numel()
    lookups = found - matrix
    assert float(torch.linalg.eigvalsh(lookups).min()) > -1e-4 * float(lookups.trace())
    weight, reference = qwen2.weight(head), reference_of(logits, ids)
    error = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), with_weights(qwen2, {head: weight + error}):
        both = compare(reference, qwen2.logits(ids)).kl_nats
    with torch.no_grad(), with_forward(qwen2.head, lambda x: functional.linear(x, weight + error)):
        alone = compare(reference, qwen2.logits(ids)).kl_nats
    # rows are equally likely in this random text, so lookups' share of the loss is theirs of the moments
    share = float((error @ lookups * error).sum() / ids.unique().numel())
    assert both - alone == pytest.approx(share / 2, rel=0.35)


def test_experts_that_no_token_reaches_have_no_moments(llama: LoadedModel, tmp_path: Path) -> None:
    mlp = llama.layers[1].mlp
    assert isinstance(mlp, nn.Module)

    def routed(x: Tensor) -> Tensor:
        kept: Tensor = mlp.gate_proj(x)  # type: ignore[operator]
        kept[:, :2] *= mlp.up_proj(x[:, :2])  # type: ignore[operator]
        return torch.zeros_like(x) + kept.mean()

    with with_forward(mlp, routed):
        found = gather(llama, tmp_path / "moments")
    assert found.tokens["model.layers.1.mlp.gate_proj"] == 6 * 32
    assert found.tokens["model.layers.1.mlp.up_proj"] == 6 * 2
    assert found.tokens["model.layers.1.mlp.down_proj"] == 0
    assert found.of("model.layers.1.mlp.up_proj").shape == (64, 64)
    with pytest.raises(MeasurementError, match="no calibration token reached"):
        found.of("model.layers.1.mlp.down_proj")


def test_tokens_of_zeros_do_not_count(llama: LoadedModel, tmp_path: Path) -> None:
    linear = llama.linear("model.layers.0.mlp.down_proj")

    def most_are_empty(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0] * (torch.arange(args[0].shape[1]) < 3).view(1, -1, 1),)

    hook = linear.register_forward_pre_hook(most_are_empty, prepend=True)
    try:
        found = gather(llama, tmp_path / "moments")
    finally:
        hook.remove()
    assert found.tokens["model.layers.0.mlp.down_proj"] == 6 * 3


def test_lookups_are_gathered_from_the_first_tokens_only(
    qwen2: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    backward = sampled_backward

    def counted(loaded: LoadedModel, batch: Tensor, *rest: object, **named: object) -> Tensor:
        ran.append(batch.numel())
        return backward(loaded, batch, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(moments, "sampled_backward", counted)
    monkeypatch.setattr(moments, "LOOKUP_TOKENS", 70)
    gather(qwen2, tmp_path / "moments")
    assert ran == [64]
