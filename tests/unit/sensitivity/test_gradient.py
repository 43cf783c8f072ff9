"""Gradient estimates: their square form, their limit of many draws, complete, repeatable, loud when impossible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from qplan.errors import MeasurementError, StaleArtifactError
from qplan.formats import FP16, INT4, INT8, QuantFormat, parse_formats
from qplan.model.backward import sampled_backward
from qplan.model.load import LoadedModel, load_model
from qplan.model.mixture import RoutedLinear
from qplan.model.replace import with_forward, with_weights
from qplan.notes import note
from qplan.rounding import Int8Activations
from qplan.run.calibration import CalibrationSet
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import open_analysis
from qplan.sensitivity.fisher import FisherObserver, FisherSetup
from qplan.sensitivity.menu import resolve_menu
from qplan.sensitivity.metrics import reference_of
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.settings import DynamicOption
from qplan.tensors import Role
from tests.support.whole_tables import estimated_table, measured_table

MANY = 32
"""Draws that leave little noise."""


@pytest.mark.slow
def test_many_draws_come_to_what_is_measured(tiny: LoadedModel, calibration: CalibrationSet) -> None:
    formats = (INT8, QuantFormat(6))
    estimated = estimated_table(tiny, calibration, formats, draws=MANY)
    exact = measured_table(tiny, calibration, formats)
    # behind a tensor of the others a token may be sent to another expert, which no gradient foresees
    mixed = tiny.card.model_type == "qwen3_moe"
    smooth = {s.name for s in tiny.card.tensors if not mixed or s.role in {Role.EXPERT, Role.HEAD}}
    for memory in ("low", "normal"):
        ours, theirs = estimated.losses(memory), exact.losses(memory)
        cells = [(name, fmt) for name, row in theirs.items() for fmt in row if name in smooth]
        a = np.array([ours[name][fmt].kl_nats for name, fmt in cells])
        b = np.array([theirs[name][fmt].kl_nats for name, fmt in cells])
        logs = np.log(a / b)
        assert abs(np.median(logs)) < 0.06
        assert np.sqrt(np.mean(logs**2)) < 0.2
        assert spearmanr(a, b)[0] > 0.97
        for name, fmt in cells:
            assert ours[name][fmt].sqnr_db == pytest.approx(theirs[name][fmt].sqnr_db, abs=1.5)
            assert ours[name][fmt].source == "gradient"
            assert theirs[name][fmt].source == "measured"
    assert estimated.reference_nll_nats == pytest.approx(exact.reference_nll_nats, rel=1e-5)


def test_halves_lose_a_millionth(tiny: LoadedModel, calibration: CalibrationSet) -> None:
    ours = estimated_table(tiny, calibration, (FP16,), draws=MANY).losses()
    theirs = measured_table(tiny, calibration, (FP16,)).losses()
    ratios = [ours[name]["fp16"].kl_nats / theirs[name]["fp16"].kl_nats for name in ours]
    assert np.median(ratios) == pytest.approx(1, abs=0.15)


class _Recorder:
    """Keeps what an observer sees."""

    def __init__(self) -> None:
        self.seen: dict[nn.Linear, tuple[Tensor, Tensor, Tensor | None]] = {}

    def forward(self, module: nn.Linear, inputs: Tensor, outputs: Tensor) -> None:
        assert outputs.shape[:-1] == inputs.shape[:-1]

    def backward(self, module: nn.Linear, inputs: Tensor, gradients: Tensor, lookups: Tensor | None) -> None:
        self.seen[module] = inputs, gradients, lookups


@pytest.mark.parametrize(("chunk", "option"), [(1 << 21, 0), pytest.param(600, 2, marks=pytest.mark.slow)])
def test_squares_are_their_definition(
    tiny: LoadedModel,
    calibration: CalibrationSet,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    option: DynamicOption,
) -> None:
    monkeypatch.setattr("qplan.sensitivity.fisher._CHUNK_ELEMENTS", chunk)
    tokens = torch.from_numpy(calibration.tokens)[:2]
    menu, _ = resolve_menu(tiny.card, (INT8, QuantFormat(4, 0)), option)
    stored, activations = StoredWeights(tiny, limit_bytes=0), Int8Activations("prefill", option)
    observer, recorder = FisherObserver(FisherSetup(tiny, menu, stored, activations), tokens), _Recorder()
    sampled_backward(tiny, tokens, [5], observer)
    sampled_backward(tiny, tokens, [5], recorder)
    for spec in tiny.card.tensors:
        inputs, gradients, lookups = recorder.seen[tiny.linear(spec.name)]
        assert (lookups is None) == (not spec.tied)
        slope, weight = gradients[..., tiny.sites[spec.name].rows], tiny.weight(spec.name)
        products = torch.einsum("sto,sti->soi", slope, inputs)
        if lookups is not None:
            used = nn.functional.one_hot(tokens, spec.out_features).float()
            products += torch.einsum("stv,sti->svi", used, lookups)
        for index, fmt in enumerate(menu[spec.name]):
            rows = ((stored.get(spec.name, fmt) - weight) * products).sum(-1)
            expected = rows.square().sum(-1).double()
            torch.testing.assert_close(observer.squares(spec.name, index, int8=False), expected, rtol=1e-3, atol=0)
            if fmt.is_float:  # a router's: activations stay floats
                continue
            routed = isinstance(tiny.linear(spec.name), RoutedLinear)
            rounding = activations.round(inputs, activations.block(fmt), routed=routed) - inputs
            expected += (slope @ weight * rounding).sum(-1).square().sum(-1).double()
            torch.testing.assert_close(observer.squares(spec.name, index, int8=True), expected, rtol=1e-3, atol=0)


@pytest.mark.slow
def test_labels_are_drawn_from_the_model(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    """The gradient of log p(label) vanishes on average over labels of the model, and squares to the Fisher."""
    tokens = torch.from_numpy(calibration.tokens)[:1]
    head, total, squares, draws = qwen2.head, 0.0, 0.0, 400
    for seed in range(draws):
        recorder = _Recorder()
        sampled_backward(qwen2, tokens, [seed], recorder)
        slope = recorder.seen[head][1].double()
        total, squares = total + slope, squares + slope.square()  # type: ignore[assignment]
    p = torch.softmax(qwen2.logits(tokens).double(), -1)
    variance = p * (1 - p)
    error = torch.as_tensor(total) / draws / (variance / draws).sqrt()
    assert float(error.square().mean()) == pytest.approx(1, abs=0.15)
    assert float((torch.as_tensor(squares) / draws).sum() / variance.sum()) == pytest.approx(1, abs=0.05)


def test_interval_and_what_is_not_known(qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path) -> None:
    table = estimated_table(qwen2, calibration, parse_formats("int8,int4"), batch_size=4)
    for row in table.measurements:
        assert (row.kl_p99_nats, row.top1, row.nll_nats) == (None, None, None)
        assert row.stderr_nats is not None
        assert 0 < row.stderr_nats < row.kl_nats * 2
    for losses in table.losses().values():
        for loss in losses.values():
            assert loss.top1 is None
            assert loss.stderr_nats > 0.12 * loss.kl_nats
    table.write(tmp_path / "t.parquet")
    assert SensitivityTable.read(tmp_path / "t.parquet").sha256 == table.sha256
    assert table.conditions.mode == "gradient"
    alone = estimated_table(qwen2, calibration, (INT8,), batch_size=1)
    assert all(row.stderr_nats is None for row in alone.measurements)
    assert all(loss["int8"].stderr_nats > 0 for loss in alone.losses().values())


def test_the_seed_and_not_the_batch_before_chooses_labels(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    whole = estimated_table(qwen2, calibration, (INT8, INT4), batch_size=2, journal=tmp_path / "a")
    lines = (tmp_path / "a").read_text().splitlines(keepends=True)
    for kept in (1, 2, 60, len(lines) - 3):
        (tmp_path / "b").write_text("".join(lines[:kept]))
        again = estimated_table(qwen2, calibration, (INT8, INT4), batch_size=2, journal=tmp_path / "b")
        assert again.sha256 == whole.sha256
    other = estimated_table(qwen2, replace(calibration, seed=1), (INT8, INT4), batch_size=2)
    assert other.measurements != whole.measurements
    with pytest.raises(StaleArtifactError, match="draws was 1, now 2"):
        estimated_table(qwen2, calibration, (INT8, INT4), batch_size=2, draws=2, journal=tmp_path / "a")


def test_a_finished_run_returns_at_once(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = estimated_table(qwen2, calibration, (INT8,), journal=tmp_path / "a")
    monkeypatch.setattr("qplan.sensitivity.gradient.sampled_backward", lambda *_args: pytest.fail("run again"))
    assert estimated_table(qwen2, calibration, (INT8,), journal=tmp_path / "a").sha256 == whole.sha256


def test_both_modes_share_a_journal(qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path) -> None:
    estimated = estimated_table(qwen2, calibration, (INT8,), journal=tmp_path / "a")
    exact = measured_table(qwen2, calibration, (INT8,), journal=tmp_path / "a")
    assert exact.measurements == measured_table(qwen2, calibration, (INT8,)).measurements
    assert estimated_table(qwen2, calibration, (INT8,), journal=tmp_path / "a").sha256 == estimated.sha256


def test_the_model_is_left_as_it_was(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    before = qwen2.logits(torch.from_numpy(calibration.tokens))
    estimated_table(qwen2, calibration, (INT8,))
    assert torch.equal(qwen2.logits(torch.from_numpy(calibration.tokens)), before)
    assert not any(p.requires_grad or p.grad is not None for p in qwen2.model.parameters())
    assert not any(m._forward_hooks for m in qwen2.model.modules())


def test_reference_nll(tiny: LoadedModel, calibration: CalibrationSet) -> None:
    tokens = torch.from_numpy(calibration.tokens)
    nll = sampled_backward(tiny, tokens, [0], _Recorder())
    torch.testing.assert_close(nll, reference_of(tiny.logits(tokens), tokens).nll, rtol=1e-5, atol=1e-5)


def test_nothing_changed_loses_nothing(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    halves = {spec.name: qwen2.weight(spec.name).half().float() for spec in qwen2.card.tensors}
    with with_weights(qwen2, halves):
        table = estimated_table(qwen2, calibration, (FP16,))
    assert all(row.kl_nats == 0 and row.sqnr_db == math.inf for row in table.measurements)


def test_what_a_matrix_of_zeros_hides_loses_nothing(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    dead = "model.layers.1.mlp.down_proj"
    with with_weights(qwen2, {dead: torch.zeros_like(qwen2.weight(dead))}):
        table = estimated_table(qwen2, calibration, (INT8,))
    hidden = [f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert {row.tensor for row in table.measurements if row.kl_nats == 0} == set(hidden)
    assert note("tensors-without-loss", count=3, tensors=hidden, others=0) in table.notes


def test_a_zero_loss_that_the_whole_model_denies_is_refused(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    mlp: Any = qwen2.model.get_submodule("model.layers.1.mlp")
    plain = mlp.forward

    def without_gradient(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = plain(x)
        return y + (y.detach() - y)

    with (
        with_forward(mlp, without_gradient),
        pytest.raises(MeasurementError, match=r"gate_proj in int8, .* loses exactly 0 .* measurement is broken"),
    ):
        estimated_table(qwen2, calibration, (INT8,))


@contextmanager
def _bypass(loaded: LoadedModel, *, detached: bool) -> Iterator[None]:
    """A layer's MLP that is skipped, or through which no gradient flows."""
    mlp = loaded.model.get_submodule("model.layers.1.mlp")
    original = type(mlp).forward
    with with_forward(mlp, (lambda x: original(mlp, x).detach()) if detached else (lambda x: x)):
        yield


@pytest.mark.parametrize("detached", [False, True])
def test_a_tensor_that_is_not_reached_is_refused(
    qwen2: LoadedModel, calibration: CalibrationSet, *, detached: bool
) -> None:
    with (
        _bypass(qwen2, detached=detached),
        pytest.raises(MeasurementError, match=r"layers\.1\.mlp\.gate_proj was not reached"),
    ):
        estimated_table(qwen2, calibration, (INT8,))


def test_a_linear_that_runs_twice_is_refused(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    mlp = qwen2.model.get_submodule("model.layers.1.mlp")
    original = type(mlp).forward
    with (
        with_forward(mlp, lambda x: original(mlp, x) + original(mlp, x)),
        pytest.raises(MeasurementError, match="more than once"),
    ):
        estimated_table(qwen2, calibration, (INT8,))


def test_what_is_not_finite_is_refused(
    qwen2: LoadedModel, llama: LoadedModel, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj"
    huge = torch.full_like(llama.weight("lm_head"), math.inf)
    with with_weights(llama, {"lm_head": huge}), pytest.raises(MeasurementError, match="overflows"):
        estimated_table(llama, calibration, (FP16,))
    exact = StoredWeights.get

    def broken(self: StoredWeights, tensor: str, fmt: QuantFormat) -> Tensor:
        value = exact(self, tensor, fmt)
        return torch.full_like(value, math.nan) if tensor == name else value

    monkeypatch.setattr(StoredWeights, "get", broken)
    with pytest.raises(MeasurementError, match=r"up_proj in int8, memory low, batch 0: gradients or stored weights"):
        estimated_table(qwen2, calibration, (INT8,), journal=tmp_path / "journal.jsonl")
    assert name not in (tmp_path / "journal.jsonl").read_text()


def test_progress_and_rows_in_order(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    seen: list[tuple[int, int]] = []
    table = estimated_table(
        qwen2, calibration, (INT8, INT4), batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    with open_analysis(qwen2, calibration, (INT8, INT4), "low") as analysis:
        order = [(name, fmt.name, memory) for name, fmt, memory in analysis.entries()]
    assert list(dict.fromkeys((m.tensor, m.format, m.memory) for m in table.measurements)) == order


def test_an_embedding_that_does_more_is_refused(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    embedding = qwen2.embedding
    with (
        with_forward(embedding, lambda ids: nn.functional.embedding(ids, embedding.weight).tanh()),
        pytest.raises(MeasurementError, match="--mode measured"),
    ):
        estimated_table(qwen2, calibration, (INT8,))


@pytest.mark.parametrize(("dtype", "bias"), [(torch.float16, 0.02), (torch.bfloat16, 0.08)])
def test_half_precision_is_enough_for_gradients_and_for_nothing_else(
    model_folders: dict[str, Path], calibration: CalibrationSet, dtype: torch.dtype, bias: float
) -> None:
    loaded = load_model(str(model_folders["qwen2"]))
    loaded.model.to(dtype)
    in_half = estimated_table(loaded, calibration, (INT8, INT4), draws=4).losses()
    with pytest.raises(MeasurementError, match="losses can be measured in float32 only"):
        measured_table(loaded, calibration, (INT8,))
    loaded.model.to(torch.float32)  # the weights stay those of the half precision
    in_float = estimated_table(loaded, calibration, (INT8, INT4), draws=4).losses()
    ratios = [in_half[name][fmt].kl_nats / in_float[name][fmt].kl_nats for name in in_float for fmt in in_float[name]]
    assert np.median(ratios) == pytest.approx(1, abs=bias)
    assert np.std(np.log(ratios)) < 0.25
