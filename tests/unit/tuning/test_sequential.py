from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qplan.cost.training import restarts
from qplan.errors import DamagedArtifactError
from qplan.formats import FP16, QuantFormat
from qplan.model.layerwise import hidden_of
from qplan.model.load import LoadedModel, load_model
from qplan.rounding import Int8Activations, IntTensor
from qplan.rounding.corrected import CorrectedTarget, PairedSums
from qplan.rounding.moments import Moments, gather_moments
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import FittedTensors, StoredCache
from qplan.run.damage import DamagedCacheWarning
from qplan.sensitivity.joint import Variant, joint_losses
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats
from qplan.settings import Memory
from qplan.tuning.inputs import in_order as linears_in_order
from qplan.tuning.inputs import input_of
from qplan.tuning.judge import Tuned, in_order, judged
from qplan.tuning.sequential import SequentialFit
from tests.support.tiny_models import save_model

INPUTS = {"model": "a", "tokens": "b"}
DOWN = "model.layers.2.mlp.down_proj"


def tokens(seed: int, rows: int = 24) -> Tensor:
    return torch.randint(3, 300, (rows, 32), generator=torch.Generator().manual_seed(seed))


def formats_of(loaded: LoadedModel, bits: int = 3) -> dict[str, QuantFormat]:
    """Everything at one width, as far as it can have it."""
    found = {}
    for spec in loaded.card.tensors:
        asked = spec.resolve(QuantFormat(bits, 32))
        found[spec.name] = asked if spec.allows(asked) else spec.resolve(QuantFormat(8, 32))
    return found


def a_fit(loaded: LoadedModel, folder: Path, *, memory: Memory = "low", bits: int = 3, **more: Any) -> SequentialFit:
    moments = Moments.open(folder / "moments", INPUTS)
    if moments is None:
        moments = gather_moments(loaded, tokens(0), folder / "moments", inputs=INPUTS)
    rounder = Rounder(loaded, "gptq", moments, None, StoredCache(folder / "rounded", INPUTS))
    plan = Variant(formats_of(loaded, bits), memory, Int8Activations())
    cache = StoredCache(folder / "fitted", INPUTS)
    # batches of one sequence, so that there are enough of them to train on
    return SequentialFit(rounder, plan, tokens(0), cache, folder / "between", **{"batch_size": 1, **more})


def fitted(fit: SequentialFit) -> Rounder:
    return replace(fit.rounder, fitted=FittedTensors(fit.cache, fit.formats))


def files(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("memory", ["low", pytest.param("normal", marks=pytest.mark.slow)])
def test_the_whole_model_loses_less(tiny: LoadedModel, tmp_path: Path, memory: Memory) -> None:
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    fit = a_fit(tiny, tmp_path, memory=memory)
    fit.run()
    one_by_one, in_turn = (
        joint_losses(tiny, tokens(0), {"": fit.plan.formats}, memory, rounder=rounder)[""].kl_nats
        for rounder in (fit.rounder, fitted(fit))
    )
    assert in_turn < one_by_one
    assert not (tmp_path / "between").exists()
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())


def test_a_layers_output_comes_closer_to_the_float_models(qwen2: LoadedModel, tmp_path: Path) -> None:
    fit = a_fit(qwen2, tmp_path)
    fit.run()

    def hidden(rounder: Rounder | None) -> Tensor:
        formats = {} if rounder is None else fit.plan.formats
        with apply_formats(qwen2, formats, "low", stored=StoredWeights(qwen2, rounder)):
            return _returned(qwen2.layers[-1], lambda: qwen2.logits(tokens(0)))

    exact = hidden(None)
    one_by_one, in_turn = ((hidden(rounder) - exact).square().mean() for rounder in (fit.rounder, fitted(fit)))
    assert in_turn < 0.9 * one_by_one


def test_tokens_with_massive_activations_do_not_count_for_all_others(
    llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in llama.model.state_dict().items()}
    rows, last = tokens(0), llama.layers[-1]
    rows[:, 0] = 2  # no other token is
    errors = {}
    try:
        gate, up = (llama.linear(f"model.layers.0.mlp.{name}") for name in ("gate_proj", "up_proj"))
        first = input_of(llama, 0, rows[:1], None, gate)[0, 0]
        for linear in (gate, up):
            linear.weight.data[0] = 8 * first / first.norm()
        exact = _returned(last, lambda: llama.logits(rows))
        sizes = exact.norm(dim=-1)
        assert sizes[:, 0].min() > 20 * sizes[:, 1:].median()
        for kind in ("weighed", "alike"):
            if kind == "alike":
                monkeypatch.setattr(SequentialFit, "_weights", lambda *_: None)
            fit = replace(a_fit(llama, tmp_path / kind, memory="normal"), tokens=rows)
            fit.run()
            with apply_formats(llama, fit.plan.formats, "normal", stored=StoredWeights(llama, fitted(fit))):
                seen = _returned(last, lambda: llama.logits(rows))
            errors[kind] = ((seen - exact).norm(dim=-1) / sizes)[:, 1:].square().mean()
    finally:
        llama.model.load_state_dict(before)
    assert errors["weighed"] < 0.95 * errors["alike"]


def _returned(layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a layer returns."""
    found: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _m, _a, output: found.append(hidden_of(output)))
    try:
        run()
    finally:
        hook.remove()
    return found[0]


def test_layers_are_trained_if_asked_for(qwen2: LoadedModel, tmp_path: Path) -> None:
    stored: dict[bool, dict[str, IntTensor]] = {}
    for trains in (False, True):
        fit = a_fit(qwen2, tmp_path / str(trains), memory="normal", trains=trains)
        fit.run()
        stored[trains] = {name: FittedTensors(fit.cache, fit.formats).read(name) for name in fit.formats}
    first = [name for name in stored[True] if ".layers.0." in name]
    assert any(not torch.equal(stored[False][name].scale, stored[True][name].scale) for name in first)
    # what layer 1 is given is another thing then
    assert not torch.equal(stored[False][DOWN].codes, stored[True][DOWN].codes)


def test_rounding_is_tried_again_as_often_as_tokens_tell_of_a_feature() -> None:
    assert restarts(576, 8192, layers=False) == 7
    assert restarts(1536, 8192, layers=False) == 2
    assert restarts(4864, 4096, layers=False) == 0
    assert restarts(704, 131072, layers=False) == 93
    assert restarts(704, 131072, layers=True) == 186
    assert restarts(64, 131072, layers=True) == 512


def test_linears_run_in_order_and_those_of_one_input_together(tiny: LoadedModel) -> None:
    linears = [tiny.linear(spec.name) for spec in tiny.card.tensors if spec.layer == 0]
    groups = linears_in_order(tiny, 0, tokens(1, 2), None, list(dict.fromkeys(linears)))
    names = {linear: spec.kind for spec, linear in zip(tiny.card.tensors, linears, strict=False)}
    kinds = [{names[linear] for linear in together} for together in groups]
    assert kinds[0] >= {"q_proj", "k_proj", "v_proj"} or len(kinds[0]) == 1
    assert kinds[1:]
    assert kinds[-1] == {"down_proj"}
    inputs = [[input_of(tiny, 0, tokens(1, 2), None, linear) for linear in together] for together in groups]
    for same in inputs:
        assert all(torch.equal(same[0], other) for other in same)


def test_nothing_behind_a_linear_is_computed_for_its_input(llama: LoadedModel) -> None:
    ran: list[str] = []
    parts = {
        "q_proj": llama.linear("model.layers.0.self_attn.q_proj"),
        "down": llama.linear("model.layers.0.mlp.down_proj"),
    }
    hooks = [part.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, part in parts.items()]
    try:
        input_of(llama, 0, tokens(1, 1), None, llama.linear("model.layers.0.mlp.gate_proj"))
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == ["q_proj"]


class _KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("after", "trains"),
    [(9, True), *(pytest.param(after, False, marks=pytest.mark.slow) for after in (1, 5, 14, 21)), (9, False)],
)
def test_a_killed_fit_goes_on_with_the_same_integers(
    qwen2: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, after: int, trains: bool
) -> None:
    whole = a_fit(qwen2, tmp_path / "whole", trains=trains)
    whole.run()
    wanted = files(tmp_path / "whole" / "fitted")
    assert len(wanted) == len(whole.formats) == 22

    stored: list[str] = []
    get = StoredCache.get

    def until_killed(self: StoredCache, name: str, fmt: QuantFormat, *rest: Any) -> Any:
        if self.folder.name == "fitted":
            if len(stored) == after:
                raise _KilledError
            stored.append(name)
        return get(self, name, fmt, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(StoredCache, "get", until_killed)
        with pytest.raises(_KilledError):
            a_fit(qwen2, tmp_path / "killed", trains=trains).run()
    assert 0 < len(files(tmp_path / "killed" / "fitted")) < 22
    told: list[int] = []
    a_fit(qwen2, tmp_path / "killed", trains=trains).run(progress=lambda done, _: told.append(done))
    assert files(tmp_path / "killed" / "fitted") == wanted
    assert len(told) <= 4 - after // 7  # layers that were finished are not done again


def test_a_killed_fit_weighs_an_mlp_beside_attention_by_its_own_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which reads what q, k and v do: those may be there already."""
    loaded = load_model(str(save_model("phi", tmp_path / "model")))
    a_fit(loaded, tmp_path / "whole", memory="normal").run()
    fit = SequentialFit._fit

    def until_killed(self: SequentialFit, name: str, target: CorrectedTarget) -> None:
        if name == "model.layers.1.mlp.fc1":
            raise _KilledError
        fit(self, name, target)

    with monkeypatch.context() as patch:
        patch.setattr(SequentialFit, "_fit", until_killed)
        with pytest.raises(_KilledError):
            a_fit(loaded, tmp_path / "killed", memory="normal").run()
    a_fit(loaded, tmp_path / "killed", memory="normal").run()
    assert files(tmp_path / "killed" / "fitted") == files(tmp_path / "whole" / "fitted")


def test_a_lost_tensor_of_a_finished_layer_is_fitted_again(qwen2: LoadedModel, tmp_path: Path) -> None:
    fit = a_fit(qwen2, tmp_path)
    fit.run()
    wanted = files(tmp_path / "fitted")
    lost = next(path for path in (tmp_path / "fitted").iterdir() if "layers.1.mlp.up_proj" in path.name)
    lost.unlink()
    with pytest.raises(DamagedArtifactError, match="fits it again"):
        fitted(fit).store("model.layers.1.mlp.up_proj", fit.formats["model.layers.1.mlp.up_proj"])
    a_fit(qwen2, tmp_path).run()
    assert files(tmp_path / "fitted") == wanted


def test_a_damaged_tensor_is_fitted_again(qwen2: LoadedModel, tmp_path: Path) -> None:
    fit = a_fit(qwen2, tmp_path)
    fit.run()
    wanted = files(tmp_path / "fitted")
    damaged = next(path for path in (tmp_path / "fitted").iterdir() if "layers.1.mlp.up_proj" in path.name)
    body = bytearray(damaged.read_bytes())
    body[-1] ^= 1
    damaged.write_bytes(body)
    with pytest.warns(DamagedCacheWarning, match="layers.1.mlp.up_proj"):
        a_fit(qwen2, tmp_path).run()
    assert files(tmp_path / "fitted") == wanted


def test_what_lies_between_layers_is_made_again_where_a_part_is_gone(
    qwen2: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = a_fit(qwen2, tmp_path / "whole", trains=True)
    whole.run()

    def killed(_self: SequentialFit, index: int, train: Any = SequentialFit._train) -> None:
        if index == 1:
            raise _KilledError
        train(_self, index)

    with monkeypatch.context() as patch:
        patch.setattr(SequentialFit, "_train", killed)
        with pytest.raises(_KilledError):
            a_fit(qwen2, tmp_path / "killed", trains=True).run()
    # the float model is a layer ahead of the quantized one then
    (tmp_path / "killed" / "between" / "exact" / "layer-0-2.safetensors").unlink()
    a_fit(qwen2, tmp_path / "killed", trains=True).run()
    assert files(tmp_path / "killed" / "fitted") == files(tmp_path / "whole" / "fitted")


@pytest.mark.slow
def test_integers_do_not_depend_on_how_many_are_fitted_at_a_time(llama: LoadedModel, tmp_path: Path) -> None:
    for jobs in (1, 3):
        a_fit(llama, tmp_path / str(jobs)).run(jobs=jobs)
    assert files(tmp_path / "1" / "fitted") == files(tmp_path / "3" / "fitted")


@pytest.mark.slow
def test_a_streamed_model_gets_the_same_integers(model_folders: dict[str, Path], tmp_path: Path) -> None:
    for stream in (False, True):
        loaded = load_model(str(model_folders["qwen2"]), stream=stream)
        a_fit(loaded, tmp_path / str(stream)).run()
    assert files(tmp_path / "False" / "fitted") == files(tmp_path / "True" / "fitted")


def test_floats_experts_and_starved_tensors_stay_as_they_are(
    tiny_models: dict[str, LoadedModel], tmp_path: Path
) -> None:
    fit = a_fit(tiny_models["qwen3_moe"], tmp_path)
    gate = "model.layers.0.mlp.gate_proj"
    moments = fit.rounder.moments
    assert moments is not None
    starving = replace(moments, tokens=moments.tokens | {gate: 3})
    plan = replace(fit.plan, formats={**fit.plan.formats, "model.layers.0.mlp.up_proj": FP16})
    fit = replace(fit, rounder=replace(fit.rounder, moments=starving), plan=plan)
    experts = {name for name in fit.plan.formats if ".experts." in name}
    assert experts
    assert set(fit.plan.formats) - set(fit.formats) == experts | {gate, "model.layers.0.mlp.up_proj"}
    fit.run()
    assert len(files(tmp_path / "fitted")) == len(fit.formats)
    for name in (*experts, gate, "model.layers.0.mlp.up_proj"):
        fmt = plan.formats[name]
        assert torch.equal(fitted(fit).store(name, fmt).dequantize(), fit.rounder.store(name, fmt).dequantize())


def test_a_tied_head_keeps_to_its_lookups(qwen2: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its target weighs what its own moments hold beside those of the last hidden states."""
    fit = a_fit(qwen2, tmp_path)
    given: list[Tensor | None] = []
    target = PairedSums.target

    def see(self: PairedSums, more: Tensor | None = None) -> Any:
        given.append(more)
        return target(self, more)

    monkeypatch.setattr(PairedSums, "target", see)
    fit.run()
    last: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        last.append(args[0].flatten(0, -2).double())

    hook = qwen2.head.register_forward_pre_hook(note)
    try:
        qwen2.logits(tokens(0))
    finally:
        hook.remove()
    rows = torch.cat(last)
    lookups = fit.rounder.moments.of("lm_head").double() - rows.T @ rows / len(rows)  # type: ignore[union-attr]
    assert all(more is None for more in given[:-1])
    assert given[-1] is not None
    assert float(lookups.diagonal().mean()) > 0
    torch.testing.assert_close(given[-1].double(), lookups, rtol=1e-3, atol=1e-4)


def test_integers_ship_where_whole_models_lose_less_beyond_doubt(qwen2: LoadedModel, tmp_path: Path) -> None:
    fit = a_fit(qwen2, tmp_path, bits=2)
    fit.run()
    found = judged(Tuned(fit.rounder), in_order(fit), fit.plan, tokens(0).numpy())
    record = found.record
    assert record is not None
    assert record.ships
    assert record.after_nats < record.before_nats
    assert record.tokens == tokens(0).numel()
    shipped = joint_losses(
        qwen2, tokens(0), {"": fit.plan.formats}, "low", rounder=found.rounder, engine_embedding=True
    )
    assert shipped[""].kl_nats == pytest.approx(record.after_nats, rel=1e-4)
    assert (found.rounder.fitted.have("lm_head", fit.formats["lm_head"])) == record.head  # type: ignore[union-attr]


def test_what_gains_nothing_does_not_ship(qwen2: LoadedModel, tmp_path: Path) -> None:
    fit = a_fit(qwen2, tmp_path)
    for name, fmt in fit.formats.items():  # as if fitting had found the same
        fit.cache.get(name, fmt, lambda name=name, fmt=fmt: fit.rounder.store(name, fmt))  # type: ignore[misc]
    fit.run()
    found = judged(Tuned(fit.rounder), in_order(fit), fit.plan, tokens(0, 4).numpy())
    assert found.record is not None
    assert found.rounder is fit.rounder
    assert not found.record.ships
    assert not found.record.head
    assert found.record.after_nats == found.record.before_nats


def test_a_head_of_floats_makes_one_choice(qwen2: LoadedModel, tmp_path: Path) -> None:
    fit = a_fit(qwen2, tmp_path)
    assert [choice.head for choice in in_order(fit)] == [False, True]
    floats = replace(fit, plan=replace(fit.plan, formats={**fit.plan.formats, "lm_head": FP16}))
    assert [choice.head for choice in in_order(floats)] == [False]
