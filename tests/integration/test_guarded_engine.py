"""``qplan.Engine``: broken models, bad inputs and dying engines become exceptions, and nothing else."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

import qplan
from qplan.errors import InputError, PreflightError, QplanError, ToolError
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from tests.support.fault_corpus import FAULTS, Fault

NATIVE = ("hidden-size-wrong", "logits-index-renamed", "weights-cut", "tie-of-two-bits", "tokenizer-cut", "graph-cut")
"""Faults that the engine itself is made to face; reports/engine has all of them."""


@pytest.fixture(scope="module")
def engine(good: dict[str, Path]) -> Iterator[qplan.Engine]:
    with qplan.Engine(good["tied"], context=64, timeout_s=60) as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_survives_every_broken_folder(fault: Fault, corpus: dict[str, Path]) -> None:
    if fault.severity == "error" and fault.engine is None:
        with pytest.raises(PreflightError, match=fault.code if fault.code != "tie-scales" else "tie"):
            qplan.Engine(corpus[fault.name])
        return
    with qplan.Engine(corpus[fault.name], timeout_s=60) as engine:  # a warning, or a fault of older engines
        assert np.isfinite(engine.logits([1, 2, 3])).all()


@pytest.mark.parametrize("name", NATIVE)
def test_survives_what_the_engine_does_with_broken_folders(name: str, corpus: dict[str, Path]) -> None:
    told = ""
    try:
        with qplan.Engine(corpus[name], timeout_s=60, check=False) as engine:
            told = "logits" if engine.logits([1, 2, 3]).size else ""
    except ToolError as error:
        told = str(error)
    assert told


def test_text_comes_piece_by_piece(engine: qplan.Engine, tied_model_dir: Path) -> None:
    pieces = list(engine.generate("the quick", 6))
    timing = engine.timing
    ids = engine.encode("the quick")
    step = engine._open().begin(ids)
    tokens = [step.token]
    while len(tokens) < 6:
        tokens.append(engine._open().step(tokens[-1]).token)
    tokenizer = AutoTokenizer.from_pretrained(tied_model_dir)
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert timing is not None
    assert (timing.prompt_tokens, len(timing.decode_s)) == (len(ids), 5)
    assert timing.prefill_s > 0
    assert timing.decode_tokens_per_s > 0


def test_a_generation_is_ended_by_another_request(engine: qplan.Engine) -> None:
    pieces = engine.generate([1, 2, 3], 20)
    next(pieces)
    engine.logits([1, 2])
    with pytest.raises(InputError, match="another request"):
        list(pieces)


def test_a_crash_is_told_and_the_next_request_starts_again(good: dict[str, Path]) -> None:
    with qplan.Engine(good["tied"], timeout_s=60) as engine:
        before = engine.logits([5, 6, 7])
        process = engine._open()._running()._process
        # stopped, so that the signal comes while it has a request and not between two
        process.send_signal(signal.SIGSTOP)

        def crash() -> None:
            process.send_signal(signal.SIGSEGV)
            process.send_signal(signal.SIGCONT)

        threading.Timer(0.5, crash).start()
        with pytest.raises(ToolError, match="died"):
            engine.logits([1] * 64)
        np.testing.assert_array_equal(engine.logits([5, 6, 7]), before)
    with pytest.raises(ToolError, match="was closed"):
        engine.logits([1])


BAD: tuple[Any, ...] = (
    [], (), "", None, "text", b"bytes", 1, 1.5, [1.5], ["1"], [None], [[1]], [True], [-1], [320], [10**30], [-(10**30)],
    [float("nan")], [float("inf")], {1, 2}, {1: 2}, range(10**12), range(65), [0] * 65, [2] * 10**6, object(),
    [object()], np.zeros((2, 2), int), np.zeros(0, int), np.zeros(3), np.array([1, 400]), np.array(["a"]),
    np.array([True]), [1j], [np.float32(1)], [np.int64(320)], [np.int64(-1)],
)  # fmt: skip
BAD_TEXTS: tuple[Any, ...] = ("", None, 5, b"x", "a\0b", "\ud800", "x" * (1 << 21), ["a"], 1.0)
BAD_COUNTS: tuple[Any, ...] = (0, -1, 1.5, None, "3", True, 10**9, float("nan"), [1])
BAD_SETTINGS: tuple[dict[str, Any], ...] = (
    {"memory": "tiny"}, {"memory": None}, {"memory": 0}, {"precision": ["low"]}, {"threads": 0}, {"threads": "4"},
    {"threads": 10**9}, {"threads": 1.5}, {"threads": True}, {"dynamic_option": 9}, {"dynamic_option": "2"},
    {"dynamic_option": True}, {"threads": -3}, {"precision": "double"},
)  # fmt: skip
BAD_OPTIONS: tuple[dict[str, Any], ...] = (
    {"folder": 5}, {"folder": None}, {"folder": "nowhere"}, {"folder": "a\0b"}, {"context": 0}, {"context": "8"},
    {"context": 1.5}, {"timeout_s": 0}, {"timeout_s": "1"}, {"timeout_s": float("nan")}, {"runtime": {"threads": 1}},
)  # fmt: skip


def test_a_thousand_bad_inputs(engine: qplan.Engine, good: dict[str, Path]) -> None:
    draw = random.Random(2)
    process = engine._open()._running()._process.pid
    bad_prompts = [bad for bad in BAD if not isinstance(bad, str) or not bad]

    def spoil() -> list[Any]:
        """A sequence that is good but for one place."""
        ids: list[Any] = [draw.randrange(320) for _ in range(draw.randrange(1, 64))]
        wrong = (320, -1, draw.randrange(321, 10**9), -draw.randrange(1, 10**9), 0.5, "7", None, [3], 1 << 70, False)
        ids[draw.randrange(len(ids))] = draw.choice(wrong)
        return ids

    many: tuple[Any, ...] = (list, np.array)
    attempts = (
        lambda: engine.logits(spoil()),
        lambda: engine.logits(draw.choice(BAD)),
        lambda: engine.logits(draw.choice(many)([draw.randrange(320, 1 << 40)] * draw.randrange(1, 9))),
        lambda: engine.generate(spoil(), 3),
        lambda: engine.generate(draw.choice(bad_prompts), 3),
        lambda: engine.generate([1, 2], draw.choice(BAD_COUNTS)),
        lambda: engine.generate([1] * draw.randrange(1, 64), draw.randrange(64, 10**6)),
        lambda: engine.encode(draw.choice(BAD_TEXTS)),
        lambda: RuntimeConfig(**draw.choice(BAD_SETTINGS)),
        lambda: qplan.Engine(**({"folder": good["tied"]} | draw.choice(BAD_OPTIONS))),
    )
    for _ in range(1000):
        with pytest.raises(QplanError) as refused:
            draw.choice(attempts)()
        assert len(str(refused.value)) > 20
    assert engine._open()._running()._process.pid == process
    assert np.isfinite(engine.logits([1, 2, 3])).all()


def test_a_model_with_state_outside_the_cache_is_loaded_again(good: dict[str, Path]) -> None:
    # the engine's reset() leaves a convolution's state, and one token goes on from it: LFM2, see reports/engine
    with EngineSession(good["tied"]) as engine:
        engine.logits([1, 2, 3])
        process = engine._running()
        expected = engine.logits_stepwise([4, 5])
        assert engine._running() is process
        engine.__dict__["_keeps_state"] = True
        np.testing.assert_array_equal(engine.logits_stepwise([4, 5]), expected)
        assert engine._running() is not process
        process = engine._running()
        engine.logits([1, 2, 3])
        assert engine._running() is process


def test_restarts_leave_nothing_behind(good: dict[str, Path]) -> None:
    def mine() -> tuple[int, int]:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]), len(list(Path("/proc/self/fd").iterdir()))

    with qplan.Engine(good["tied"]) as engine:
        engine.logits([1, 2, 3])
        before = mine()
        for _ in range(8):
            engine.restart()
            engine.logits([1, 2, 3])
        after = mine()
    assert after[1] == before[1]
    assert after[0] - before[0] < 4096  # kB


def test_the_package_stays_light() -> None:
    code = "import sys, qplan; sys.exit(any(name in sys.modules for name in ('numpy', 'torch', 'MNN', 'qplan.mnn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = qplan.Motor
