"""The proof on ARM: on this machine's engine in place of an emulator, and under the emulator where that was added."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import qplan
from qplan.compat.arm import measure_arm
from qplan.errors import InputError
from qplan.formats import FP16, INT8, QuantFormat
from qplan.mnn.arm.home import ArmEngine
from qplan.mnn.arm.processors import USUAL, find_processor
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.host import THIS_PYTHON, EngineHost
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.rounding import Int8Activations, StoredTensor, rtn
from qplan.rounding.int16 import within_int16
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.kept_logits import kept_logits
from qplan.settings import DynamicOption
from qplan.verify.arm import ArmTrial, prove_on_arm
from tests.support.mnn_models import VOCABULARY, EmulatedOp, ExportedModel, linear

DIES = EngineHost((sys.executable, "-c", f"import os; os.kill(os.getpid(), {signal.SIGSEGV.value})"))
"""An engine that crashes when it is started."""


@pytest.fixture
def emulated() -> ArmEngine:
    """The ARM engine of this machine."""
    found = ArmEngine.find()
    if found is None or found.missing(()):
        pytest.skip("MNN's ARM engine is not here: qplan engines add arm")
    return found


@pytest.fixture(scope="module")
def loaded(tied_model_dir: Path) -> LoadedModel:
    return load_model(str(tied_model_dir))


@pytest.fixture
def trial(tied_model: ExportedModel, loaded: LoadedModel, tmp_path: Path) -> Iterator[ArmTrial]:
    """A model of 8 and 4 bits and halves, on two rows of 24 tokens."""
    formats = {spec.name: INT8 if spec.tied else QuantFormat(4, 32) for spec in loaded.card.tensors}
    formats[loaded.card.tensors[0].name] = FP16
    build_model(tied_model.skeleton, loaded.card.tensors, formats, Rounder(loaded).store, tmp_path / "model")
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (2, 24))
    with kept_logits(loaded, rows) as reference:
        yield ArmTrial(
            folder=tmp_path / "model",
            formats=formats,
            runtime=RuntimeConfig(),
            card=loaded.card,
            reference=reference,
            predicted={("arm-dot", "low", "decode"): 0.25},
        )


def test_every_processor_runs_and_one_that_crashes_fails_alone(trial: ArmTrial) -> None:
    told: list[tuple[int, int]] = []
    hosts = {"arm-v8": DIES, "arm-dot": THIS_PYTHON}
    proof = prove_on_arm(trial, hosts, jobs=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(1, 9)]
    assert [(run.processor, run.precision, run.path) for run in proof.runs] == [
        ("arm-dot", precision, path) for precision in ("low", "high") for path in ("prefill", "decode")
    ]
    # the engine in its own place loses what it loses, and so do the tokens that are compared
    assert all(run.accuracy.kl_nats == run.here_nats > 0 for run in proof.runs)
    assert [run.predicted_nats for run in proof.runs] == [None, 0.25, None, None]
    assert [run.accuracy.tokens for run in proof.runs] == [48, 6, 48, 6]
    formats, crashed, _, right = proof.checks
    assert [check.passed for check in proof.checks] == [True, False, True, True]
    assert (formats.promise.code, right.found.code) == ("arm-formats", "arm-lost")
    assert "its process died" in str(crashed.found)


def test_a_format_that_the_target_garbles_fails_by_name(trial: ArmTrial) -> None:
    formats = {name: QuantFormat(4, 24) if fmt.bits == 4 else fmt for name, fmt in trial.formats.items()}
    proof = prove_on_arm(
        ArmTrial(**{**vars(trial), "formats": formats}), {"arm-v8": THIS_PYTHON}, jobs=1, progress=lambda *_: None
    )
    assert not proof.checks[0].passed
    assert "int4-b24 are not right there" in str(proof.checks[0].found)


def test_an_interrupt_ends_what_is_being_emulated(trial: ArmTrial) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prove_on_arm(trial, dict.fromkeys(USUAL, THIS_PYTHON), jobs=2, progress=stop)


def test_the_arm_engine_computes_what_torch_computes(emulated: ArmEngine, trial: ArmTrial) -> None:
    hosts = {"arm-i8mm": emulated.host(find_processor("arm-i8mm"))}
    proof = prove_on_arm(trial, hosts, jobs=1, progress=lambda *_: None)
    assert [check.passed for check in proof.checks] == [True, True], [str(check.found) for check in proof.checks]
    assert len(proof.runs) == 4
    for run in proof.runs:
        assert run.accuracy.kl_nats == pytest.approx(run.here_nats, rel=0.5)


@pytest.mark.parametrize("option", [0, 2])
def test_one_op_is_computed_to_the_last_code_but_on_the_edge(
    emulated: ArmEngine, tied_model: ExportedModel, token_ids: list[int], tmp_path: Path, option: DynamicOption
) -> None:
    op, fmt = "/layers.1/mlp/down_proj/Linear", QuantFormat(4)
    one = EmulatedOp(tied_model, op, fmt)
    tied_model.build(one.tensors, tmp_path / "m")
    plain = one.logits(token_ids, lambda x: x)
    host = emulated.host(find_processor("arm-i8mm"))
    runtime = RuntimeConfig("low", "high", dynamic_option=option)
    with EngineSession(tmp_path / "m", runtime, host=host) as engine:
        found = engine.logits(token_ids)
    left = {}
    for arithmetic in ("arm", "x86"):
        seen = Int8Activations("prefill", option, arithmetic)
        expected = one.logits(token_ids, lambda x, seen=seen: seen.round(x, seen.block(fmt)))  # type: ignore[misc]
        off = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected - plain, axis=1)
        left[arithmetic] = float(np.median(off))
    assert left["arm"] < 3e-3
    assert option == 0 or left["x86"] > 0.3  # its prefill has no shift


def test_a_user_can_ask_it_too(emulated: ArmEngine, trial: ArmTrial) -> None:
    ids = trial.reference.rows[0, :8].tolist()
    with qplan.Engine(trial.folder) as here, qplan.Engine(trial.folder, processor="arm-i8mm") as there:
        assert there.version == here.version
        difference = np.linalg.norm(there.logits(ids) - here.logits(ids)) / np.linalg.norm(here.logits(ids))
    assert 0 < difference < 0.1


def test_a_format_is_measured_on_every_processor_and_a_crash_is_a_result() -> None:
    said: list[str] = []
    v8, dot = measure_arm({"arm-v8": THIS_PYTHON, "arm-dot": DIES}, said.append, [QuantFormat(4, 24)])
    assert (v8.format.name, v8.tied, len(v8.results), v8.faults) == ("int4-b24", False, 8, {})
    assert set(dot.results.values()) == {"crash SIGSEGV"}
    assert said == ["arm-v8, int4-b24: ok", "arm-dot, int4-b24: crash SIGSEGV"]


def test_without_it_a_user_is_told_how_to_get_it(
    good: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(os.environ, "QPLAN_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"processor 'arm-dot' needs .*'qplan engines add arm'"):
        qplan.Engine(good["tied"], processor="arm-dot")


def test_two_products_of_the_lowest_codes_overflow_without_dot_product(
    emulated: ArmEngine, tied_model: ExportedModel, token_ids: list[int], tmp_path: Path
) -> None:
    op = "/layers.1/mlp/down_proj/Linear"
    model = tied_model.load()
    mlp = model.model.layers[1].mlp
    with torch.no_grad():
        # one large activation of a block leaves the lowest code to the others
        mlp.up_proj.weight[0] *= 10_000
        mlp.down_proj.weight.copy_(mlp.down_proj.weight.sign() * 0.1)
    tensors: dict[str, StoredTensor] = {
        one.name: rtn(linear(model, one.name).weight.data, FP16) for one in tied_model.skeleton.ops
    }
    plain = rtn(mlp.down_proj.weight.data, INT8)
    apart: dict[str, float] = {}
    for label, stored in (("exported", plain), ("planned", within_int16(plain))):
        folder = tmp_path / label
        tied_model.build(tensors | {op: stored}, folder)
        found = []
        for name in ("arm-v8", "arm-i8mm"):
            host = emulated.host(find_processor(name))
            with EngineSession(folder, RuntimeConfig("low", "high", dynamic_option=2), host=host) as engine:
                found.append(engine.logits(token_ids))
        apart[label] = float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1]))
    assert apart["exported"] > 0.05
    assert apart["planned"] < 0.02
