"""Measured losses: equal to running everything from the start, complete, repeatable, and loud when impossible."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import InputError, MeasurementError
from qplan.formats import FP16, INT4, INT8, QuantFormat, parse_formats
from qplan.model.load import LoadedModel
from qplan.model.replace import with_forward, with_weights
from qplan.notes import text_note
from qplan.planner.budget import parse_budgets
from qplan.planner.planning import make_plan
from qplan.rounding import Int8Activations
from qplan.run.calibration import CalibrationSet
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.menu import resolve_menu
from qplan.sensitivity.metrics import compare, reference_of
from qplan.sensitivity.replay import LayerPass, ReferencePass
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats
from qplan.settings import Memory
from tests.support.whole_tables import compare_logits, measured_table

FORMATS = parse_formats("fp16,int8,int4")


@pytest.mark.parametrize("memory", ["low", "normal"])
def test_it_is_what_a_full_run_gives(tiny: LoadedModel, calibration: CalibrationSet, memory: Memory) -> None:
    table = measured_table(tiny, calibration, (INT8, INT4), memory, batch_size=4)
    tokens = torch.from_numpy(calibration.tokens)
    batches = tokens.split(4)
    passes = [ReferencePass.run(tiny, batch) for batch in batches]
    assert {m.tensor for m in table.measurements} == {spec.name for spec in tiny.card.planned}
    assert {m.memory for m in table.measurements} == {memory, "normal"}
    for m in table.measurements:
        base, batch = passes[m.batch], batches[m.batch]
        with apply_formats(tiny, {m.tensor: QuantFormat.parse(m.format)}, m.memory):
            logits, hidden = _logits_and_last_hidden(tiny, batch)
        plain = compare(base.reference, logits)
        whole = base.last_hidden is None or m.tensor in {"lm_head", "model.embed_tokens"}
        full = plain if base.last_hidden is None or whole else base.last_hidden.compare(hidden)
        assert m.tokens == full.tokens
        assert m.kl_nats == pytest.approx(full.kl_nats, rel=1e-6)
        assert m.kl_p99_nats == pytest.approx(full.kl_p99_nats, rel=1e-6)
        assert m.nll_nats == pytest.approx(full.nll_nats, rel=1e-6)
        assert m.top1 == full.top1 == plain.top1
        # differences of float32 logits have fewer digits than differences of hidden states
        assert m.kl_nats == pytest.approx(plain.kl_nats, rel=1e-4, abs=1e-11)
        assert m.nll_nats == pytest.approx(plain.nll_nats, rel=1e-6)
        assert 0 < m.sqnr_db < 90
        assert m.cosine is not None
        assert 0.9 < m.cosine < 1


def test_softcapped_logits_are_compared_whole(tiny_models: dict[str, LoadedModel], calibration: CalibrationSet) -> None:
    tokens = torch.from_numpy(calibration.tokens)
    assert ReferencePass.run(tiny_models["gemma2"], tokens).last_hidden is None


def test_differences_of_hidden_states_have_more_digits(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    tokens = torch.from_numpy(calibration.tokens)
    last = ReferencePass.run(qwen2, tokens).last_hidden
    assert last is not None
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-5, 1e-3, 0.03, 1.0):
        moved = last.hidden + scale * torch.randn(last.hidden.shape, generator=generator)
        exact = [(hidden.double() @ qwen2.head.weight.double().T) for hidden in (last.hidden, moved)]
        log_p, log_q = (torch.log_softmax(logits, -1) for logits in exact)
        stats = last.compare(moved)
        torch.testing.assert_close(stats.kl, (log_p.exp() * (log_p - log_q)).sum(-1), rtol=2e-4, atol=1e-14)
        assert torch.equal(stats.same_top, exact[0].argmax(-1) == exact[1].argmax(-1))
        labels = last.reference.labels
        nll = -log_q[labels >= 0].gather(-1, labels[labels >= 0].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(stats.nll, nll, rtol=1e-6, atol=1e-6)
    assert last.compare(last.hidden.clone()).kl.count_nonzero() == 0


def _logits_and_last_hidden(loaded: LoadedModel, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    seen: list[torch.Tensor] = []
    handle = loaded.head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    logits = loaded.logits(tokens)
    handle.remove()
    return logits, seen[0]


def test_wider_is_better_and_the_table_is_read_back(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    table = measured_table(qwen2, calibration, FORMATS, "normal")
    losses = table.losses()
    assert all(row["fp16"].kl_nats < row["int8"].kl_nats < row["int4"].kl_nats for row in losses.values())
    assert all(row["fp16"].sqnr_db > row["int8"].sqnr_db > row["int4"].sqnr_db for row in losses.values())
    tokens = torch.from_numpy(calibration.tokens)
    nll = reference_of(qwen2.logits(tokens), tokens).nll
    assert table.reference_nll_nats == pytest.approx(float(nll.mean()), rel=1e-6)
    table.write(tmp_path / "sensitivity.parquet")
    assert SensitivityTable.read(tmp_path / "sensitivity.parquet").sha256 == table.sha256


def test_int8_activations_cost(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    table = measured_table(qwen2, calibration, (FP16, INT8), "low")
    low, normal = table.losses("low"), table.losses("normal")
    assert normal == measured_table(qwen2, calibration, (FP16, INT8), "normal").losses()
    for name in low:
        assert low[name]["fp16"] == normal[name]["fp16"]
        assert low[name]["int8"].kl_nats > normal[name]["int8"].kl_nats


def test_progress_counts_every_measurement(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    seen: list[tuple[int, int]] = []
    measured_table(qwen2, calibration, (INT8,), batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (88, 88)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_formats_are_resolved_and_told(llama: LoadedModel, qwen2: LoadedModel) -> None:
    menu, notes = resolve_menu(llama.card, parse_formats("int4,int4-b0"))
    assert menu["model.layers.0.mlp.down_proj"] == (QuantFormat(4, 0), QuantFormat(4, 4))
    assert len(menu["model.layers.0.mlp.up_proj"]) == 2
    names = ", ".join(f"model.layers.{layer}.mlp.down_proj" for layer in range(3))
    change = f"int4 became int4-b0 and int4-b4 for {names}: blocks of 64 do not divide rows of 172 weights"
    assert list(map(str, notes)) == [change]
    menu, notes = resolve_menu(qwen2.card, parse_formats("int8,int3"))
    assert menu["lm_head"] == (INT8,)
    assert "lm_head is not measured in int3" in str(notes[0])
    with pytest.raises(InputError, match="lm_head allows none of the formats int3"):
        resolve_menu(qwen2.card, (QuantFormat(3),))


def test_weights_that_are_halves_lose_nothing_as_fp16(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    halves = {spec.name: qwen2.weight(spec.name).half().float() for spec in qwen2.card.tensors}
    with with_weights(qwen2, halves):
        table = measured_table(qwen2, calibration, (FP16,))
    assert all(m.kl_nats == 0 and m.sqnr_db == math.inf for m in table.measurements)


def test_an_inserted_layer_that_adds_nothing_yet_loses_nothing(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    inside = "model.layers.1."
    dead = [inside + name for name in ("self_attn.o_proj", "mlp.down_proj")]
    with with_weights(qwen2, {name: torch.zeros_like(qwen2.weight(name)) for name in dead}):
        table = measured_table(qwen2, calibration, (INT8,))
    silent = {m.tensor for m in table.measurements if m.kl_nats == 0}
    assert silent == {spec.name for spec in qwen2.card.tensors if spec.name.startswith(inside)}
    (told,) = [told for told in table.notes if told.code == "tensors-without-loss"]
    assert "7 tensors lose exactly nothing" in str(told)
    plan = make_plan(table, parse_budgets(["16bpw"]), estimate_fixed(qwen2.card))
    assert set(plan.formats) == {spec.name for spec in qwen2.card.tensors}


def test_a_zero_loss_that_the_whole_model_denies_is_refused(
    qwen2: LoadedModel, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LayerPass, "replay", lambda here, _linear, outputs: [here.end] * len(outputs))
    with pytest.raises(MeasurementError, match=r"q_proj in int8, memory low, loses exactly 0 .* measurement is broken"):
        measured_table(qwen2, calibration, (INT8,))


def test_a_tensor_that_is_not_reached_is_refused(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    mlp = qwen2.model.get_submodule("model.layers.1.mlp")
    with (
        with_forward(mlp, lambda x: x),
        pytest.raises(MeasurementError, match=r"layers\.1\.mlp\.gate_proj was not reached"),
    ):
        measured_table(qwen2, calibration, (INT8,))


def test_a_layer_that_is_not_run_is_refused(
    qwen2: LoadedModel, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a loop over fewer layers than the model holds
    monkeypatch.setattr(nn.ModuleList, "__getitem__", lambda self, index: list(self.children())[:2])
    with pytest.raises(MeasurementError, match=r"decoder layers \[2\] were not run"):
        measured_table(qwen2, calibration, (INT8,))


def test_an_unrepeatable_model_is_refused(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    norm = qwen2.model.get_submodule("model.norm")
    noise = torch.Generator().manual_seed(0)
    original = type(norm).forward
    noisy = lambda x: original(norm, x) + 1e-3 * torch.randn(x.shape, generator=noise)  # noqa: E731
    with (
        with_forward(norm, noisy),
        pytest.raises(MeasurementError, match=r"unchanged model loses .* expected exactly 0"),
    ):
        measured_table(qwen2, calibration, (INT8,))


def test_a_loss_that_is_not_finite_is_refused(
    qwen2: LoadedModel, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*args: object) -> torch.Tensor:
        return torch.full((64, 64), math.nan)

    monkeypatch.setattr(StoredWeights, "get", broken)
    with pytest.raises(MeasurementError, match=r"q_proj in int8, memory low, batch 0: 64 of 64 tokens have a loss"):
        measured_table(qwen2, calibration, (INT8,), journal=tmp_path / "journal.jsonl")
    assert "q_proj" not in (tmp_path / "journal.jsonl").read_text()


def test_joint_losses(tiny: LoadedModel, calibration: CalibrationSet) -> None:
    tokens = torch.from_numpy(calibration.heldout)
    plans = {
        "none": {},
        "one": {"lm_head": INT8},
        "all": {spec.name: INT8.resolve(spec.in_features) for spec in tiny.card.tensors},
    }
    seen: list[tuple[int, int]] = []
    found = joint_losses(tiny, tokens, plans, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert found["none"].kl_nats == 0
    assert 0 < found["one"].kl_nats < found["all"].kl_nats
    assert found["all"].tokens == tokens.numel()
    assert seen[-1] == (6, 6)
    with apply_formats(tiny, plans["all"], "low"):
        variant = tiny.logits(tokens)
    direct = compare_logits(tiny.logits(tokens), variant, tokens)
    assert found["all"].kl_nats == pytest.approx(direct.kl_nats, rel=1e-4)
    decode = joint_losses(tiny, tokens, plans, activations=Int8Activations("decode"))
    assert decode["all"].kl_nats != found["all"].kl_nats


def test_one_tensor_alone_is_the_same_joint_and_single(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    single = measured_table(qwen2, calibration, (INT4,)).losses()
    name = "model.layers.2.self_attn.v_proj"
    joint = joint_losses(qwen2, torch.from_numpy(calibration.tokens), {"x": {name: INT4}})
    assert joint["x"].kl_nats == pytest.approx(single[name]["int4"].kl_nats, rel=1e-6)


def test_batches_weigh_by_their_tokens(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    whole = measured_table(qwen2, calibration, (INT4,), batch_size=6)
    parts = measured_table(qwen2, calibration, (INT4,), batch_size=4)
    assert {m.tokens for m in parts.measurements} == {64, 32}
    for name, row in whole.losses().items():
        assert parts.losses()[name]["int4"].kl_nats == pytest.approx(row["int4"].kl_nats, rel=1e-4)
    assert replace(whole, notes=(text_note("x"),)).sha256 != whole.sha256
