"""Strengths of folds: what is gathered, what it predicts, and that the fit lowers what counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qplan.folding import evidence as fold_evidence
from qplan.folding.evidence import Evidence, gather_evidence
from qplan.folding.fit import expected_loss, fit_scales, root_mean_square_scales, smooth_scales
from qplan.folding.fold import fold, fold_sites
from qplan.formats import FP16, INT4, INT8
from qplan.model.load import LoadedModel
from qplan.rounding import int8_prefill
from qplan.run.calibration import CalibrationSet
from qplan.sensitivity.joint import joint_losses
from qplan.uniform import uniform_formats


@pytest.fixture(scope="module")
def tokens(calibration: CalibrationSet) -> Tensor:
    """All windows there are."""
    return torch.from_numpy(calibration.tokens)


@pytest.fixture(scope="module")
def outlying(qwen2: LoadedModel) -> LoadedModel:
    """A tied model with outlier channels in every input, as trained models have: folds of random scales."""
    generator = torch.Generator().manual_seed(5)
    scales = {}
    for site in fold_sites(qwen2):
        factors = torch.ones(site.channels)
        factors[torch.randperm(site.channels, generator=generator)[:3]] = 0.1
        scales[site.name] = factors
    return fold(qwen2, scales)


def _evidence(loaded: LoadedModel, tokens: Tensor) -> list[Evidence]:
    return list(gather_evidence(loaded, tokens, fold_sites(loaded), batch_size=2))


def test_evidence_is_what_goes_through_the_readers(tiny: LoadedModel, tokens: Tensor) -> None:
    found = _evidence(tiny, tokens)
    assert [seen.site for seen in found] == list(fold_sites(tiny))
    for seen in found:
        inputs: list[Tensor] = []

        def note(_: nn.Module, args: tuple[Tensor, ...], inputs: list[Tensor] = inputs) -> None:
            inputs.append(args[0].flatten(0, -2))

        hook = tiny.linear(seen.site.name).register_forward_pre_hook(note)
        tiny.logits(tokens)
        hook.remove()
        assert torch.allclose(seen.inputs.float(), torch.cat(inputs), rtol=0.01, atol=1e-6)
        assert seen.tokens.shape == (tokens.numel(),)
        assert float(seen.tokens.mean()) == pytest.approx(1, rel=1e-4)
        assert set(seen.rows) == set(seen.site.readers)
        assert all(len(seen.rows[name]) == len(tiny.weight(name)) for name in seen.rows)
        assert (seen.lookups is not None) == (seen.looked_up is not None) == seen.site.tied
        if seen.looked_up is not None:
            assert float(seen.looked_up.sum()) == pytest.approx(1, rel=1e-5)


def test_inputs_that_are_too_much_to_keep_are_thinned(
    tiny: LoadedModel, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _evidence(tiny, tokens)
    monkeypatch.setattr(fold_evidence, "INPUT_BYTES", sum(2 * seen.inputs.numel() for seen in whole) // 3)
    thinned = _evidence(tiny, tokens)
    for all_of_it, some in zip(whole, thinned, strict=True):
        assert len(some.inputs) == len(some.tokens) == pytest.approx(tokens.numel() / 3, rel=0.1)
        places = [(all_of_it.inputs == row).all(1).nonzero().flatten().tolist() for row in some.inputs]
        assert all(places)
        # the kept slopes are those of the kept inputs, relative to their own mean
        slopes = torch.stack([all_of_it.tokens[place[0]] for place in places])
        unique = torch.tensor([len(place) == 1 for place in places])
        ratio = (some.tokens / slopes)[unique]
        assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-4)
        assert torch.equal(all_of_it.columns, some.columns)
        assert all(torch.equal(all_of_it.rows[name], some.rows[name]) for name in some.rows)
    assert sum(2 * seen.inputs.numel() for seen in thinned) <= fold_evidence.INPUT_BYTES


def test_the_expected_loss_of_activations_is_that_of_rounding_them(qwen2: LoadedModel, tokens: Tensor) -> None:
    """Against the mean over errors that are really made, for slopes that are the evidence's own."""
    for seen in _evidence(qwen2, tokens):
        # a single plan of floats has no weight error: what is left with int8 weights is known apart
        plan = dict.fromkeys(seen.site.readers, INT8)
        ones = torch.ones(seen.site.channels)
        low, normal = (float(expected_loss(seen, qwen2, ones, [plan], (memory,))) for memory in ("low", "normal"))
        inputs = seen.inputs.float()
        error = int8_prefill(inputs) - inputs
        made = float((seen.tokens.unsqueeze(1) * error.square() * seen.columns).sum(1).mean() / 2)
        assert low - normal == pytest.approx(made, rel=0.25)


def test_the_expected_loss_of_weights_follows_widths_and_scales(qwen2: LoadedModel, tokens: Tensor) -> None:
    for seen in _evidence(qwen2, tokens):
        plans = [dict.fromkeys(seen.site.readers, fmt) for fmt in (FP16, INT8, INT4)]
        ones = torch.ones(seen.site.channels)
        float16, eight, four = expected_loss(seen, qwen2, ones, plans, ("normal",))[0].tolist()
        assert float16 == 0
        assert four == pytest.approx(eight * (255 / 15) ** 2, rel=1e-4)
        # one factor for all channels changes nothing
        assert expected_loss(seen, qwen2, 3 * ones, plans, ("low",))[0].tolist() == pytest.approx(
            expected_loss(seen, qwen2, ones, plans, ("low",))[0].tolist(), rel=1e-4
        )


@pytest.mark.slow
def test_the_fit_lowers_the_loss_of_whole_models(outlying: LoadedModel, tokens: Tensor) -> None:
    plans = [uniform_formats(outlying.card, bits) for bits in (8, 4)]
    found = _evidence(outlying, tokens[:4])
    ones = [expected_loss(seen, outlying, torch.ones(seen.site.channels), plans, ("low", "normal")) for seen in found]
    totals = torch.stack(ones).sum(0)
    scales = {}
    for seen, before in zip(found, ones, strict=True):
        scales[seen.site.name] = fit_scales(seen, outlying, plans, totals, ("low", "normal"))
        after = expected_loss(seen, outlying, scales[seen.site.name], plans, ("low", "normal"))
        assert float((after / totals).sum()) < float((before / totals).sum())
    folded = fold(outlying, scales)
    for plan, at_most in zip(plans, (0.6, 1.0), strict=True):
        losses = [joint_losses(model, tokens[4:], {"": plan}, "low")[""].kl_nats for model in (outlying, folded)]
        assert losses[1] < at_most * losses[0]


def test_published_strengths(outlying: LoadedModel, tokens: Tensor) -> None:
    for seen in _evidence(outlying, tokens):
        flat = root_mean_square_scales(seen, 1.0)
        shaped = seen.inputs.float() / seen.site.expand(flat)
        energy = shaped.square().mean(0).reshape(seen.site.repeats[1], seen.site.repeats[0], -1).mean(1)
        # every channel is equally loud; groups of heads share theirs
        assert float(energy.max() / energy.min()) == pytest.approx(1, rel=0.01)
        none, half, whole = (smooth_scales(seen, outlying, alpha) for alpha in (0.0, 0.5, 1.0))
        largest = (seen.inputs.float().abs() / seen.site.expand(whole)).amax(0)
        largest = largest.reshape(seen.site.repeats[1], seen.site.repeats[0], -1).amax(1)
        assert float(largest.max() / largest.min()) == pytest.approx(1, rel=0.01)
        columns = torch.stack([outlying.weight(name).abs().amax(0) for name in seen.site.readers]).amax(0)
        columns = (columns * seen.site.expand(none)).reshape(seen.site.repeats[1], seen.site.repeats[0], -1).amax(1)
        assert float(columns.max() / columns.min()) == pytest.approx(1, rel=0.01)
        assert torch.allclose(half.log(), (none.log() + whole.log()) / 2, atol=1e-5)


def test_a_model_without_int8_activations_is_fitted_to_weights_alone(outlying: LoadedModel, tokens: Tensor) -> None:
    seen = replace(_evidence(outlying, tokens)[3])
    plans = [dict.fromkeys(seen.site.readers, INT8)]
    totals = expected_loss(seen, outlying, torch.ones(seen.site.channels), plans, ("normal",))
    low, normal = (fit_scales(seen, outlying, plans, totals, (memory,)) for memory in ("low", "normal"))
    assert not torch.allclose(low, normal, rtol=0.01)
    weights = [float(expected_loss(seen, outlying, scale, plans, ("normal",))) for scale in (low, normal)]
    assert weights[1] < 0.99 * weights[0]
