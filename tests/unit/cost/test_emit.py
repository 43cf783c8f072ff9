"""Work and memory of an emit, held against what torch counts and against limits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qplan.cost.emit import (
    BUILDING,
    CACHING,
    COMPARING,
    EXPORTING,
    GATE,
    JUDGING,
    JUDGING_SCALES,
    KEEPING,
    PROVING,
    PROVING_ARM,
    REPAIRING,
    TRAINING,
    TUNING,
    EmitAsked,
    EmitCost,
)
from qplan.cost.expected import Expected, ExpectedStage
from qplan.cost.forward import rounding_again
from qplan.cost.shape import Shape
from qplan.cost.training import TrainingTokens
from qplan.cost.work import REFERENCE, Machine
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.rounding.curvature import Curvature
from qplan.rounding.gptq import gptq
from qplan.rounding.moments import gather_moments
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import StoredCache
from qplan.sensitivity.joint import Variant
from qplan.tuning.scales import ScaleFit
from qplan.tuning.schedule import Schedule
from qplan.tuning.sequential import SequentialFit
from tests.support.costs import COUNTING, engine_cost

ROWS, SEQ_LEN = 8, 16

ASKED = EmitAsked(
    judged=ROWS * SEQ_LEN,
    planning=ROWS * SEQ_LEN,
    seq_len=SEQ_LEN,
    checkpoint_bytes=10**6,
    models=1,
    held=1,
    fits=True,
    chosen=True,
    solves=True,
    choices=50,
    memories=2,
    evaluations=10,
    weighs_activations=True,
    exports=1,
    export_bytes=8e8,
    rivals=1,
    compared=0,
    budgets=16,
    build=True,
)


def _stages(
    loaded: LoadedModel, asked: EmitAsked = ASKED, machine: Machine = REFERENCE, most: float = math.inf
) -> dict[str, ExpectedStage]:
    shape = Shape.of(loaded.card, asked.checkpoint_bytes)
    engine = engine_cost(shape, SEQ_LEN, most - 5e8)
    return {stage.name: stage for stage in EmitCost(shape, asked, engine, machine, most).stages()}


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_products_of_a_reference_are_those_that_torch_counts(tiny_models: dict[str, LoadedModel], name: str) -> None:
    loaded = tiny_models[name]
    with FlopCounterMode(display=False) as counter:
        loaded.logits(torch.zeros(ROWS, SEQ_LEN, dtype=torch.int64))
    # which torch does not count on a CPU: products of queries and keys, and of scores and values
    attention = 2 * 2 * ROWS * SEQ_LEN**2 * loaded.card.tensors[-1].in_features * len(loaded.layers)
    pass_flops = counter.get_total_flops() + attention
    stages = _stages(loaded, machine=COUNTING)
    assert stages[KEEPING].seconds == pytest.approx(pass_flops, rel=1e-6)
    # the plan and uniform under two settings, and the plan rounded to nearest, on half of the tokens
    nearest = _stages(loaded, replace(ASKED, choices=0, fits=False), COUNTING)
    assert nearest[COMPARING].seconds == pytest.approx(5 * pass_flops / 2, rel=1e-6)
    # half of the tokens, in models that share what comes before the tensor they differ in
    assert nearest[REPAIRING].seconds == pytest.approx(0.6 * 10 * pass_flops / 2, rel=1e-6)
    assert stages[REPAIRING].seconds > nearest[REPAIRING].seconds  # which rounds nothing whole


@pytest.mark.parametrize("layers", [False, True])
def test_products_of_fitting_in_order_are_those_that_torch_counts(
    llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, layers: bool
) -> None:
    # torch counts what this thread does, and rounding has threads of its own
    for user in ("cost.emit", "tuning.sequential"):
        monkeypatch.setattr(f"qplan.{user}.restarts", lambda *_, **__: 0)
    tokens = torch.randint(3, 300, (64, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    moments = gather_moments(llama, tokens, tmp_path / "moments", inputs={})
    plan = Variant({spec.name: QuantFormat(4, 4) for spec in llama.card.tensors}, "normal")
    cache = StoredCache(tmp_path / "fitted", {})
    fit = SequentialFit(Rounder(llama, "gptq", moments), plan, tokens, cache, trains=layers)
    with FlopCounterMode(display=False) as counter:
        fit.run()
    expected = _stages(llama, replace(ASKED, fitted=tokens.numel(), layers=layers), COUNTING)[TUNING].seconds
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.3)


@pytest.mark.parametrize(("width", "rows"), [(128, 320), (384, 64)])
def test_products_of_rounding_again_are_those_that_torch_counts(width: int, rows: int) -> None:
    random = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(count, width, generator=random) for count in (rows, 2 * width))
    curvature, counts = Curvature(inputs.T @ inputs), []
    for again in (0, 4):
        with FlopCounterMode(display=False) as counter:
            gptq(weight, QuantFormat(4, 32), curvature, restarts=again)
        counts.append(counter.get_total_flops())
    assert rounding_again(width, rows, 4).rounding_flops == pytest.approx(counts[1] - counts[0], rel=0.2)


def test_products_of_training_are_those_that_torch_counts(llama: LoadedModel, tmp_path: Path) -> None:
    tokens = torch.randint(3, 300, (24, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    plan = Variant({spec.name: QuantFormat(4, 4) for spec in llama.card.tensors}, "normal")
    schedule = Schedule.of(20, 4, SEQ_LEN)
    schedule = replace(schedule, order=np.resize(schedule.order.flatten(), (10, 4)))
    fit = ScaleFit(Rounder(llama), plan, tokens, StoredCache(tmp_path / "trained", {}), schedule)
    with FlopCounterMode(display=False) as counter:
        fit.run()
    asked = replace(ASKED, trained=schedule.tokens, steps=schedule.steps, weighed=128)
    stages = _stages(llama, asked, COUNTING)
    (name,) = (name for name in stages if name.startswith(TRAINING))
    assert name == f"{TRAINING}, {schedule.tokens.passes(128):.3g} passes"
    assert stages[name].seconds == pytest.approx(counter.get_total_flops(), rel=0.1)
    # a pass is what a pass of the analysis is: forwards, forwards with a graph, and back to its inputs
    pass_flops = 3 * stages[KEEPING].seconds * 128 / ASKED.planning
    assert stages[name].seconds == pytest.approx(schedule.tokens.passes(128) * pass_flops, rel=0.3)


def test_a_reference_holds_what_it_reads_of_a_streamed_model(qwen2: LoadedModel) -> None:
    stored, streamed = (_stages(qwen2, replace(ASKED, held=held))[KEEPING] for held in (1, 0))
    shape = Shape.of(qwen2.card, ASKED.checkpoint_bytes)
    read = max(shape.head.weights, *(sum(given.weights for given in layer) for layer in shape.layers))
    assert streamed.memory_bytes == pytest.approx(stored.memory_bytes + 4 * (read - shape.parameters))


def test_stages_are_those_that_were_asked_for(qwen2: LoadedModel) -> None:
    whole = _stages(qwen2)
    assert set(whole) - set(_stages(qwen2, replace(ASKED, exports=0))) == {EXPORTING}
    assert set(whole) - set(_stages(qwen2, replace(ASKED, evaluations=0))) == {REPAIRING}
    assert set(whole) - set(_stages(qwen2, replace(ASKED, solves=False))) == {COMPARING, REPAIRING}
    assert set(_stages(qwen2, replace(ASKED, processors=3))) - set(whole) == {PROVING_ARM}
    tuned = set(_stages(qwen2, replace(ASKED, fitted=512, weighed=128)))
    assert tuned - set(whole) == {TUNING, JUDGING}
    trained = replace(ASKED, fitted=512, weighed=128, trained=TrainingTokens(640, 896, 1024), steps=16)
    assert set(_stages(qwen2, trained)) - tuned == {f"{TRAINING}, 14.7 passes", JUDGING_SCALES}
    planned = _stages(qwen2, replace(ASKED, build=False))
    assert {GATE, BUILDING, PROVING} <= set(whole) - set(planned)
    for stage in whole.values():
        assert sum(stage.parts) == pytest.approx(stage.seconds)


@pytest.mark.parametrize(
    "more",
    [
        {"judged": 4 * ASKED.judged},
        {"planning": 4 * ASKED.planning},
        {"models": 2},
        {"evaluations": 20},
        {"exports": 2},
        {"choices": 500},
        {"processors": 1},
        {"fitted": 512, "weighed": 128},
    ],
)
def test_more_of_anything_takes_longer(qwen2: LoadedModel, more: dict[str, int]) -> None:
    least = Expected(tuple(_stages(qwen2).values()))
    found = Expected(tuple(_stages(qwen2, replace(ASKED, **more)).values()))  # type: ignore[arg-type]
    assert found.seconds > least.seconds
    assert found.memory_bytes >= least.memory_bytes


def test_the_engine_takes_what_a_limit_leaves_and_the_rest_is_refused(qwen2: LoadedModel) -> None:
    free = Expected(tuple(_stages(qwen2).values()))
    most = _stages(qwen2)[KEEPING].memory_bytes + 1e8
    assert most < free.memory_bytes
    asked = replace(ASKED, exports=0)
    limited = Expected(tuple(_stages(qwen2, asked, most=most).values()))
    assert limited.memory_bytes <= most
    roomy = replace(REFERENCE, memory_bytes=10**12, disk_bytes=10**12)
    limited.check(roomy, (), most_memory=int(most))
    with pytest.raises(InputError, match=r"needs about 0\.7 GB of memory, and --max-memory allows 0\.3 GB: raise it"):
        limited.check(roomy, (), most_memory=3 * 10**8)


def test_logits_are_counted_where_they_are_written(qwen2: LoadedModel) -> None:
    stages = Expected(tuple(_stages(qwen2).values()))
    assert stages.temporary_bytes == 4 * (ASKED.judged + ASKED.planning) * qwen2.card.vocabulary


def test_caches_that_may_be_measured_are_counted(tiny_models: dict[str, LoadedModel]) -> None:
    loaded = tiny_models["qwen2"]
    assert CACHING not in _stages(loaded)
    asked = replace(ASKED, cache_tokens=96, cache_steps=64)
    own, several = (_stages(loaded, one)[CACHING] for one in (asked, replace(asked, caches=4)))
    # the plan with its cache and with one of floats; then the FP16 model, built once, with four
    assert several.units == own.units + 4
    assert several.seconds > 2 * own.seconds
    assert own.disk_bytes == 0 < several.disk_bytes
    assert CACHING not in _stages(loaded, replace(asked, build=False))
