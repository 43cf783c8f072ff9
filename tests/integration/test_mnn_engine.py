"""The engine process: what it computes, what it refuses, and how it fails."""

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qplan.errors import InputError, ToolError
from qplan.formats import FP16, INT8
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from tests.support.mnn_models import ExportedModel


@pytest.fixture(scope="module")
def folder(tied_model: ExportedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "int8"
    tied_model.build(tied_model.tensors(tied_model.formats(INT8)), out)
    return out


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[EngineSession]:
    with EngineSession(folder, context=64) as running:
        yield running


def greedy(engine: EngineSession, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens, one after the other."""
    found = [engine.begin(prompt).token]
    while len(found) < count:
        found.append(engine.step(found[-1]).token)
    return found


def test_calls_do_not_depend_on_each_other(engine: EngineSession, token_ids: list[int]) -> None:
    first = engine.logits(token_ids)
    engine.logits_stepwise(token_ids[:7])
    greedy(engine, token_ids[:5], 3)
    engine.measure_speed(8, 3, 1)
    assert first.shape == (len(token_ids), 320)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(engine.logits(token_ids), first)
    # causal: a prefix has the same logits
    np.testing.assert_array_equal(engine.logits(token_ids[:9]), first[:9])


def test_prefill_and_decode_differ_under_memory_low(engine: EngineSession, token_ids: list[int]) -> None:
    prefill, decode = engine.logits(token_ids), engine.logits_stepwise(token_ids)
    assert 1e-4 < np.linalg.norm(prefill - decode) / np.linalg.norm(prefill) < 0.2


def test_floats_are_computed_alike_under_all_settings(
    tied_model: ExportedModel, token_ids: list[int], tmp_path: Path
) -> None:
    tied_model.build(tied_model.tensors(tied_model.formats(FP16)), tmp_path / "fp16")
    with EngineSession(tmp_path / "fp16", RuntimeConfig("low")) as low:
        found, steps = low.logits(token_ids), low.logits_stepwise(token_ids)
    with EngineSession(tmp_path / "fp16", RuntimeConfig("normal")) as normal:
        np.testing.assert_array_equal(normal.logits(token_ids), found)
    np.testing.assert_allclose(steps, found, rtol=1e-4, atol=1e-5 * float(np.abs(found).max()))


def test_generation_is_the_greedy_one(engine: EngineSession, token_ids: list[int]) -> None:
    prompt = token_ids[:6]
    found = greedy(engine, prompt, 5)
    assert found[0] == int(engine.logits(prompt)[-1].argmax())
    steps = engine.logits_stepwise([*prompt, *found])
    assert len(found) == 5
    assert found[1:] == [int(step) for step in steps[len(prompt) : -1].argmax(-1)]


def test_speed_and_memory_are_measured(engine: EngineSession) -> None:
    sample = engine.measure_speed(prompt_tokens=16, decode_tokens=4, repeats=3)
    assert (len(sample.prefill_s), len(sample.decode_s)) == (3, 12)
    some = engine.measure_speed(prompt_tokens=16, decode_tokens=4, repeats=30, least=2, enough_s=1e-6)
    assert (len(some.prefill_s), len(some.decode_s)) == (2, 8)
    assert min(sample.prefill_tokens_per_s, sample.decode_tokens_per_s) > 0
    assert engine.ram_bytes > 0
    assert engine.version.count(".") == 2


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "no tokens"), ([320], "outside of the vocabulary of 320"), ([-1], "outside"), ([1] * 65, "context of 64")],
)
def test_bad_tokens_are_refused(engine: EngineSession, ids: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine.logits(ids)


def test_a_crash_is_told_and_can_be_recovered(folder: Path, token_ids: list[int]) -> None:
    with EngineSession(folder) as engine:
        before = engine.logits(token_ids)
        killer = threading.Timer(0.3, engine._running()._process.send_signal, [signal.SIGSEGV])
        killer.start()
        with pytest.raises(ToolError, match="its process died") as failure:
            engine.measure_speed(64, 100, 1000)
        killer.join()
        assert failure.value.code == -signal.SIGSEGV
        assert "Segmentation fault" in failure.value.tail
        with pytest.raises(ToolError, match=r"call restart\(\)"):
            engine.logits(token_ids)
        engine.restart()
        np.testing.assert_array_equal(engine.logits(token_ids), before)


def test_a_hang_is_killed(folder: Path) -> None:
    with EngineSession(folder) as engine:
        engine.timeout_s = 0.0
        with pytest.raises(ToolError, match="no answer after 0 s, killed"):
            engine.measure_speed(64, 100, 100)


def test_a_model_without_weights_does_not_load(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "llm.mnn.weight").unlink()
    with pytest.raises(ToolError, match="did not load") as failure:
        EngineSession(tmp_path / "m")
    assert "weight file" in failure.value.tail
    with pytest.raises(InputError, match=r"no config\.json"):
        EngineSession(tmp_path)


def test_settings_reach_the_engine(folder: Path, token_ids: list[int]) -> None:
    assert json.loads((folder / "config.json").read_text())["memory"] == "low"
    logits = {}
    for setting in (RuntimeConfig(), RuntimeConfig(memory="normal"), RuntimeConfig(dynamic_option=2)):
        with EngineSession(folder, setting) as engine:
            logits[setting] = engine.logits(token_ids)
    low, normal, blocks = logits.values()
    assert 0 < np.linalg.norm(blocks - normal) < np.linalg.norm(low - normal)
