from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.artifact import SEAL
from qplan.cost.file_bytes import FileBytes
from qplan.errors import InputError
from qplan.notes import note, text_note
from qplan.run.baselines import measured_once
from qplan.run.verification import Accuracy, BuiltModel, Check, EngineRun, Speed, Verification
from qplan.settings import MEMORIES
from qplan.tensors import Role
from qplan.verify.checks import emulation, not_worse
from tests.support.invented_run import qwen_tensors, sensitivity

QWEN = sensitivity(qwen_tensors(2, 128, 64, 192, 512), ("fp16", "int8", "int4")).model


def built(name: str, *, low: float, normal: float, emulated_low: float | None = None) -> BuiltModel:
    def run(memory: str, path: str, kl: float) -> EngineRun:
        return EngineRun(memory, path, Accuracy(kl, 9 * kl, 0.98, 45.0, 2048))

    return BuiltModel(
        name,
        FileBytes(1000, 0, 50),
        (run("normal", "prefill", normal), run("low", "prefill", low), run("low", "decode", 99.0)),
        Speed("low", 1, 128, 1000.0, 100.0, 4096),
        {"normal": normal, "low": low if emulated_low is None else emulated_low},
    )


def test_a_verification_reads_back(tmp_path: Path) -> None:
    model = built("plan", low=1e-3, normal=1e-4)
    check = Check(note("read-back"), passed=True, found=note("ops-right", right=1, count=1))
    verification = Verification("m", "p", text_note("some text"), "t", 44.0, (model,), (check,))
    verification.write(tmp_path / "verification.json")
    assert Verification.read(tmp_path / "verification.json") == verification
    assert verification.passed
    with pytest.raises(InputError, match="qplan-baseline"):
        measured_once(tmp_path / "verification.json", {}, {}, lambda: model)


def with_other_option(model: BuiltModel, *, low: float) -> BuiltModel:
    """Ships with a scale per block; measured with one per token too."""
    own = tuple(replace(run, dynamic_option=2) for run in model.runs)
    other = EngineRun("low", "prefill", Accuracy(low, 9 * low, 0.98, 45.0, 2048))
    speed = replace(model.speed, dynamic_option=2) if model.speed else None
    return replace(model, runs=(*own, other), speed=speed, dynamic_option=2, other_speed=model.speed)


def test_a_model_speaks_for_the_option_that_it_ships_with(tmp_path: Path) -> None:
    model = with_other_option(built("plan", low=2e-4, normal=1e-4), low=9e-4)
    own, other = model.accuracy("low"), model.accuracy("low", dynamic_option=0)
    assert (own and own.kl_nats, other and other.kl_nats) == (2e-4, 9e-4)
    assert [c.passed for c in not_worse(model, built("int8", low=3e-4, normal=1e-4), MEMORIES)] == [True, True]
    verification = Verification("m", "p", text_note("some text"), "t", 44.0, (model,), ())
    verification.write(tmp_path / "verification.json")
    assert Verification.read(tmp_path / "verification.json") == verification


def test_a_verification_of_before_dynamic_options_reads(tmp_path: Path) -> None:
    path, model = tmp_path / "verification.json", built("plan", low=1e-3, normal=1e-4)
    verification = Verification("m", "p", text_note("some text"), "t", 44.0, (model,), ())
    verification.write(path)
    document = json.loads(path.read_text())
    del document[SEAL]  # which they lacked
    for old in (*document["models"], *document["models"][0]["runs"], document["models"][0]["speed"]):
        del old["dynamic_option"]
    del document["models"][0]["other_speed"]
    path.write_text(json.dumps(document | {"schema": 1}))
    assert Verification.read(path) == verification


def test_checks_of_before_codes_are_texts(tmp_path: Path) -> None:
    path, model = tmp_path / "verification.json", built("plan", low=1e-3, normal=1e-4)
    Verification("m", "p", text_note("held-out windows of a book"), "t", 44.0, (model,), ()).write(path)
    document = json.loads(path.read_text())
    del document[SEAL]  # which they lacked
    assert document["text"] == "held-out windows of a book"
    old = {"name": "llm.mnn read back", "passed": False, "detail": "0 of 1 ops have their bits and block"}
    path.write_text(json.dumps(document | {"schema": 2, "checks": [old]}))
    read = Verification.read(path)
    assert [(check.name, check.passed, check.detail) for check in read.checks] == [tuple(old.values())]
    assert str(read.text) == "held-out windows of a book"
    assert not read.passed
    read.write(path)
    assert Verification.read(path) == read


def test_the_plan_is_held_against_uniform_in_both_memories_but_not_in_decode() -> None:
    uniform = built("int8", low=1e-3, normal=1e-4)
    assert [c.passed for c in not_worse(built("plan", low=1e-3, normal=1e-4), uniform, MEMORIES)] == [True, True]
    assert [c.passed for c in not_worse(built("plan", low=9e-4, normal=1.01e-4), uniform, MEMORIES)] == [False, True]
    assert [c.passed for c in not_worse(built("plan", low=1.01e-3, normal=9e-5), uniform, MEMORIES)] == [True, False]
    low = not_worse(built("plan", low=9e-4, normal=1.0), uniform, ("low",))
    assert [c.passed for c in low] == [True]


def test_what_noise_explains_is_not_worse() -> None:
    uniform, plan = built("int8", low=1e-3, normal=1e-4), built("plan", low=1.01e-3, normal=1.01e-4)
    checks = not_worse(plan, uniform, MEMORIES, {"low": 6e-6, "normal": 4e-7})
    found = {check.promise.values["memory"]: (check.passed, check.found.code) for check in checks}
    assert found == {"low": (True, "plan-like-uniform"), "normal": (False, "plan-against-uniform")}
    assert "error of 6.0e-06" in str(next(check for check in checks if check.passed).found)


def test_losses_of_float_rounding_are_equal() -> None:
    uniform = built("fp16", low=1e-11, normal=1e-11)
    assert all(check.passed for check in not_worse(built("plan", low=4e-11, normal=4e-11), uniform, MEMORIES))


@pytest.mark.parametrize(("emulated", "kept"), [(1.04e-3, True), (0.96e-3, True), (1.06e-3, False), (0.94e-3, False)])
def test_torch_must_predict_the_engine_within_five_percent(emulated: float, *, kept: bool) -> None:
    checks = emulation(built("int8", low=1e-3, normal=1e-4, emulated_low=emulated), QWEN)
    assert [check.passed for check in checks] == [True, kept]


@pytest.mark.parametrize(("emulated", "kept"), [(4.43e-2, True), (4.95e-2, False)])
def test_the_limit_follows_the_scatter_that_was_measured(emulated: float, *, kept: bool) -> None:
    model = built("plan", low=4.09e-2, normal=1e-3, emulated_low=emulated)
    assert not emulation(model, QWEN)[1].passed
    scattered = replace(model, emulated_stderr_nats={"low": 1.5e-3, "normal": 0.0})
    checks = emulation(scattered, QWEN)
    assert [check.passed for check in checks] == [True, kept]
    assert checks[1].name == "plan: torch's loss equals the engine's, memory low"
    assert checks[1].detail.endswith("limit 20%")


@pytest.mark.parametrize(("emulated", "kept"), [(1.2e-3, True), (1.3e-3, False)])
def test_experts_may_be_chosen_otherwise_where_a_code_lies_on_an_edge(emulated: float, *, kept: bool) -> None:
    router = replace(QWEN.tensors[0], name="model.layers.0.mlp.gate", role=Role.ROUTER)
    card = replace(QWEN, tensors=(router, *QWEN.tensors))
    checks = emulation(built("int8", low=1e-3, normal=1e-4, emulated_low=emulated), card)
    assert [check.passed for check in checks] == [True, kept]
    assert checks[1].detail.endswith("limit 25%")
    # floats are compared as closely as anywhere
    wrong = replace(built("int8", low=1e-3, normal=1e-4), emulated_nats={"low": 1e-3, "normal": 1.2e-4})
    assert [check.passed for check in emulation(wrong, card)] == [True, False]


def test_baselines_are_measured_once_per_input(tmp_path: Path) -> None:
    calls = []

    def measure() -> BuiltModel:
        calls.append(1)
        return built("int8", low=1e-3, normal=1e-4)

    path = tmp_path / "int8.json"
    first = measured_once(path, {"model": "a"}, {}, measure)
    assert measured_once(path, {"model": "a"}, {}, measure) == first
    assert len(calls) == 1
    measured_once(path, {"model": "b"}, {}, measure)
    assert len(calls) == 2
