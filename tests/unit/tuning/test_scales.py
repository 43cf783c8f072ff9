from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qplan.errors import DamagedArtifactError
from qplan.formats import FP16, QuantFormat
from qplan.model.load import LoadedModel
from qplan.rounding import Int8Activations, IntTensor
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import FittedTensors, StoredCache
from qplan.sensitivity.joint import Variant, joint_losses
from qplan.sensitivity.variants import apply_formats
from qplan.settings import DynamicOption, Memory
from qplan.tuning.judge import Tuned, judged, with_scales
from qplan.tuning.scales import ScaleFit
from qplan.tuning.schedule import EPOCHS_OF_FULL, RATE, RATE_OF_MANY, STEPS_OF_FULL, Schedule, epochs_of_full
from qplan.tuning.straight import StraightActivations
from qplan.tuning.through import Batch, QuantizedModel
from qplan.tuning.trained import TrainedWeights
from qplan.tuning.training_state import TrainingState
from tests.support.moved_grids import moved_grids

INPUTS = {"model": "a", "tokens": "b"}
ROWS, HELD_OUT, LENGTH = 24, 4, 32


def tokens(seed: int, rows: int = ROWS + HELD_OUT) -> Tensor:
    return torch.randint(3, 300, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def formats_of(loaded: LoadedModel, bits: int = 3) -> dict[str, QuantFormat]:
    """Everything at one width, as far as it can have it."""
    found = {}
    for spec in loaded.card.tensors:
        asked = spec.resolve(QuantFormat(bits, 32))
        found[spec.name] = asked if spec.allows(asked) else spec.resolve(QuantFormat(8, 32))
    return found


def a_model(loaded: LoadedModel, memory: Memory = "low", option: DynamicOption = 0) -> QuantizedModel:
    """Everything rounded to nearest, with its scales moved at random."""
    formats, rounder = formats_of(loaded), Rounder(loaded)
    grids = moved_grids(rounder, formats, torch.Generator().manual_seed(1))
    activations = StraightActivations.of(Int8Activations("prefill", option))
    return QuantizedModel(loaded, Variant(formats, memory, activations), TrainedWeights(loaded, rounder, grids=grids))


def gradients(model: QuantizedModel) -> dict[str, Tensor]:
    assert isinstance(model.weights, TrainedWeights)
    return {
        f"{name} {part}": value.grad.clone()
        for name, grid in model.weights.grids.items()
        for part, value in grid.parameters.items()
        if value.grad is not None
    }


def whole_loss(model: QuantizedModel, batch: Tensor) -> Tensor:
    """The same of the whole model at once."""
    loaded, plan = model.loaded, model.plan
    exact = torch.log_softmax(loaded.logits(batch), -1)
    with apply_formats(
        loaded, plan.formats, plan.memory, plan.activations, stored=model.weights, engine_embedding=True
    ):
        logits = loaded.model(input_ids=batch, use_cache=False).logits
    return (exact.exp() * (exact - torch.log_softmax(logits, -1))).sum() / batch.numel()


@pytest.mark.parametrize(("memory", "option"), [("low", 0), ("low", 2), ("normal", 0)])
def test_gradients_layer_by_layer_are_those_of_the_whole_model(
    tiny: LoadedModel, memory: Memory, option: DynamicOption
) -> None:
    model, batch = a_model(tiny, memory, option), tokens(2, 3)
    loss = model.add_gradients(Batch(batch, model.exact(batch)))
    found = gradients(model)
    for grid in model.weights.grids.values():  # type: ignore[attr-defined]
        for value in grid.parameters.values():
            value.grad = None
    with torch.enable_grad():
        whole = whole_loss(model, batch)
    whole.backward()
    wanted = gradients(model)
    assert loss == pytest.approx(float(whole.detach()), rel=1e-5)
    assert found.keys() == wanted.keys()
    assert len(found) >= 2 * len([name for name in model.plan.formats if ".experts." not in name])
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_losses_are_those_of_the_plan_as_it_ships(tiny: LoadedModel, tmp_path: Path) -> None:
    model, batch = a_model(tiny), tokens(2, 3)
    stats = model.stats(Batch(batch, model.exact(batch)))
    kept = StoredCache(tmp_path, INPUTS)
    for name, grid in model.weights.grids.items():  # type: ignore[attr-defined]
        kept.get(name, grid.start.format, grid.stored, slice(0))
    rounder = replace(Rounder(tiny), fitted=FittedTensors(kept, model.plan.formats))
    shipped = joint_losses(tiny, batch, {"": model.plan.formats}, "low", rounder=rounder, engine_embedding=True)[""]
    assert stats.kl_nats == pytest.approx(shipped.kl_nats, rel=1e-5)


def a_fit(loaded: LoadedModel, folder: Path, *, memory: Memory = "low", bits: int = 2, **more: Any) -> ScaleFit:
    plan = Variant(formats_of(loaded, bits), memory, Int8Activations())
    schedule = Schedule.of(ROWS, HELD_OUT, LENGTH)
    together = 4
    order = np.resize(schedule.order.flatten(), (18, together))  # small steps: rows are short
    cache = StoredCache(folder / "trained", INPUTS)
    schedule = replace(schedule, order=order, fixed_rate=0.05)
    return ScaleFit(Rounder(loaded), plan, tokens(0), cache, schedule, folder / "state.safetensors", **more)


def files(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("memory", ["low", "normal"])
def test_the_whole_model_loses_less_on_rows_that_it_was_not_trained_on(
    tiny: LoadedModel, tmp_path: Path, memory: Memory
) -> None:
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    fit = a_fit(tiny, tmp_path, memory=memory)
    fit.run()
    held_out = fit.tokens[ROWS:]
    trained = replace(fit.rounder, fitted=FittedTensors(fit.cache, fit.formats))
    nearest, found = (
        joint_losses(tiny, held_out, {"": fit.plan.formats}, memory, rounder=rounder)[""].kl_nats
        for rounder in (fit.rounder, trained)
    )
    assert found < 0.99 * nearest
    assert not (tmp_path / "state.safetensors").exists()
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    for name, fmt in fit.formats.items():
        own, was = trained.store(name, fmt), fit.rounder.store(name, fmt)
        assert isinstance(own, IntTensor)
        assert isinstance(was, IntTensor)
        assert torch.equal(own.codes, was.codes)
        assert torch.equal(own.scale, own.scale.half().float())
    found_again = judged(Tuned(fit.rounder), [with_scales(fit, Tuned(fit.rounder))], fit.plan, held_out.numpy())
    assert found_again.record is not None
    assert found_again.record.method == "scales"
    assert found_again.record.steps == 18


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("after", [2, 7, 17])
def test_a_killed_training_goes_on_with_the_same_scales(
    qwen2: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    a_fit(qwen2, tmp_path / "whole").run()
    wanted, done = files(tmp_path / "whole" / "trained"), [0]
    add = QuantizedModel.add_gradients

    def until_killed(self: QuantizedModel, batch: Batch) -> float:
        if done[0] == after:
            raise _KilledError
        done[0] += 1
        return add(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(QuantizedModel, "add_gradients", until_killed)
        with pytest.raises(_KilledError):
            a_fit(qwen2, tmp_path / "killed").run()
    told: list[int] = []
    a_fit(qwen2, tmp_path / "killed").run(progress=lambda step, _: told.append(step))
    assert files(tmp_path / "killed" / "trained") == wanted
    assert told[0] == after // 3 * 3 + 1  # the loss is measured, and all kept, after each third step


def test_what_is_left_of_another_training_is_not_gone_on_with(qwen2: LoadedModel, tmp_path: Path) -> None:
    fit = a_fit(qwen2, tmp_path)
    values = {"a": torch.nn.Parameter(torch.zeros(3))}
    state = TrainingState(fit.state, values, torch.optim.Adam(values.values()), INPUTS)
    state.judge(0, 1.0)
    other = replace(state, inputs={"model": "another"}, losses=[])
    assert not other.read()
    assert state.read()
    assert fit.state is not None
    data = bytearray(fit.state.read_bytes())
    data[-1] ^= 1
    fit.state.write_bytes(data)
    with pytest.raises(DamagedArtifactError):
        state.read()


def test_training_ends_when_held_out_rows_lose_more_and_more(tmp_path: Path) -> None:
    values = {"a": torch.nn.Parameter(torch.zeros(3))}
    state = TrainingState(tmp_path / "state", values, torch.optim.Adam(values.values()), INPUTS)
    for step, loss in enumerate((5.0, 3.0, 4.0, 3.5)):
        with torch.no_grad():
            values["a"].fill_(step)
        state.judge(step and 0, loss)
        assert not state.is_past
    state.judge(0, 3.2)
    assert state.is_past
    state.take_best()
    assert values["a"].tolist() == [1.0, 1.0, 1.0]


def test_training_ends_early_where_there_is_nothing_to_gain() -> None:
    values = {"a": torch.nn.Parameter(torch.zeros(3))}
    for last, past in ((0.999, True), (0.99, False)):
        state = TrainingState(None, values, torch.optim.Adam(values.values()), INPUTS)
        for loss in (1.0, 1.001, last):
            state.judge(0, loss)
            assert state.is_past == (past and loss == last)


def test_floats_and_experts_stay_as_they_are(tiny_models: dict[str, LoadedModel], tmp_path: Path) -> None:
    fit = a_fit(tiny_models["qwen3_moe"], tmp_path)
    up = "model.layers.0.mlp.up_proj"
    fit = replace(fit, plan=replace(fit.plan, formats={**fit.plan.formats, up: FP16}))
    experts = {name for name in fit.plan.formats if ".experts." in name}
    assert experts
    assert set(fit.plan.formats) - set(fit.formats) == experts | {up}
    fit.run()
    assert len(files(tmp_path / "trained")) == len(fit.formats)


def test_a_schedule_trains_on_no_row_that_is_held_out_and_on_each_twice_at_most() -> None:
    schedule = Schedule.of(64, 8, 256)
    assert schedule.order.shape == (32, 4)
    assert np.unique(schedule.order).tolist() == list(range(64))
    assert schedule.held_out.tolist() == list(range(64, 72))
    assert max(schedule.stops) == schedule.steps
    assert (Schedule.of(64, 8, 256).order == schedule.order).all()
    assert Schedule.of(1000, 8, 256).steps == 60
    many = Schedule.of(1000, 8, 256, most=STEPS_OF_FULL, epochs=EPOCHS_OF_FULL)
    assert many.steps == STEPS_OF_FULL
    assert (many.first(60).order == Schedule.of(1000, 8, 256).order).all()
    assert Schedule.of(64, 8, 256, most=STEPS_OF_FULL, epochs=EPOCHS_OF_FULL).steps == 64 * EPOCHS_OF_FULL / 4
    assert [epochs_of_full(tokens) for tokens in (8192, 65536, 131072, 1 << 20)] == [2, 4, 8, 8]
    assert (schedule.largest_rate, many.largest_rate, many.first(32).largest_rate) == (RATE, RATE_OF_MANY, RATE)
    assert Schedule.of(1000, 8, 256, fixed_rate=0.03).first(8).largest_rate == 0.03
    rates = [schedule.rate(step) for step in range(schedule.steps)]
    assert max(rates) <= schedule.largest_rate
    assert 0 < rates[-1] < rates[0] < rates[4]


def test_a_schedule_keeps_to_a_number_of_passes() -> None:
    schedule = Schedule.of(64, 8, 256)
    passes = schedule.tokens.passes(4096)
    assert schedule.within(passes, 4096).steps == schedule.steps
    shorter = schedule.within(passes / 2, 4096)
    assert schedule.first(shorter.steps + 1).tokens.passes(4096) > passes / 2 >= shorter.tokens.passes(4096)
    assert schedule.is_worth_it
    assert not schedule.within(1, 4096).is_worth_it
    assert not Schedule.of(64, 0, 256).is_possible
    few = Schedule.of(10, 1, 256)
    assert few.is_possible
    assert not few.is_worth_it
    assert few.order.shape == (20, 1)
