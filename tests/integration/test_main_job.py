"""The whole job, as a user runs it, on models that qplan never saw."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qplan.artifact import sha256_file
from qplan.folding.analyzed import load_analyzed
from qplan.formats import INT4, INT8, QuantFormat
from qplan.jobs.options import ProfileOptions
from qplan.jobs.profile import measure_times
from qplan.jobs.skeletons import run_skeleton
from qplan.mnn.graph.binary import read_linears
from qplan.mnn.preflight import check_folder
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.profile import DeviceProfile
from qplan.run.table import SensitivityTable
from qplan.run.times import Times
from qplan.run.verification import Verification
from qplan.uniform import uniform_formats
from tests.support.bench_tables import HEAD, line, table
from tests.support.command import ANALYZE, qplan, succeed
from tests.support.documented import DOCS, assert_documented, keys
from tests.support.mnn_models import VOCABULARY, save
from tests.support.prose import english_sentences
from tests.support.tiny_models import words


@pytest.fixture(scope="module", params=["tied_model_dir", "untied_model_dir"])
def work(request: pytest.FixtureRequest, analyzed: Callable[[str], Path]) -> Path:
    """A folder with an analyzed model; the untied one has rows of 172 weights."""
    return analyzed(request.param)


@pytest.mark.parametrize("budget", ["int8", "int4", "70%"])
def test_a_plan_keeps_its_promises_on_the_engine(work: Path, budget: str) -> None:
    printed = succeed("emit", "--run", "run", "--budget", budget, "--tokens", "256", "--json", folder=work)
    keyed = DOCS / "reference" / "json.md"
    assert_documented(json.loads(printed), keys(keyed, "Every command") | keys(keyed, "qplan emit"))
    out = work / "run" / budget.replace("%", "pct")
    plan, verification = Plan.read(out / "plan.json"), Verification.read(out / "verification.json")
    assert verification.passed
    assert {check.name.split(":")[0] for check in verification.checks} >= {"fp16", "plan", "llm.mnn read back"}
    assert {check.promise.code for check in verification.checks} >= {"plan-emulation", "same-tokens"}
    built = verification.model("plan")
    assert built is not None
    assert built.files.total <= plan.budget_bytes
    assert sum(path.stat().st_size for path in (out / "model").glob("llm.mnn*")) <= plan.budget_bytes
    head = plan.tensors[-1]
    assert head.kind == "lm_head"
    assert head.format.bits >= 8
    others = [tensor for tensor in plan.tensors[:-1] if tensor.op_name]
    assert head.format.bits >= sum(t.format.bits * t.weights for t in others) / sum(t.weights for t in others)
    samples = verification.samples
    assert samples is not None
    assert set(samples.same) in (
        [{"plan", budget}] if budget.startswith("int") else [{"plan", "int8"}, {"plan", "int4"}]
    )
    assert all(set(sample.texts) == {"fp32", *samples.same} for sample in samples.shown)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=.?https?:", page)
    assert 'id="budget"' in page
    assert 'id="samples"' in page
    assert [took["command"] for took in json.loads((out / "report.json").read_text())["took"]] == ["analyze", "emit"]
    assert set(json.loads((out / "quant_config.json").read_text())) == {t.op_name for t in (*others, head)}
    assert "--quant_config" in printed
    assert not list((work / "run" / "baselines").glob("*/llm.mnn"))


def test_integers_fitted_to_the_plan_ship_and_are_proved(work: Path) -> None:
    emit = ("emit", "--run", "run", "--budget", "5.5bpw", "--tokens", "256", "--repair", "0", "--dynamic-option", "0")
    out, found = work / "run" / "5.5bpw", {}
    for tune in ("off", "sequential", "scales"):
        printed = succeed(*emit, "--tune", tune, folder=work)
        verification = Verification.read(out / "verification.json")
        assert verification.passed
        assert "llm.mnn read back" in printed
        built = verification.model("plan")
        assert built is not None
        found[tune] = Plan.read(out / "plan.json"), built.emulated_nats
    (off, before), (plan, after), (trained, last) = (found[tune] for tune in ("off", "sequential", "scales"))
    assert off.tuning is None
    assert plan.tuning is not None
    assert plan.tuning.ships
    assert plan.formats == off.formats
    times = plan.tuning.after_nats / plan.tuning.before_nats
    assert plan.predicted_nats == pytest.approx(off.predicted_nats * times, rel=1e-9)
    assert after[plan.memory] < before[plan.memory]
    assert "integers-tuned" in {note.code for note in plan.notes} - {note.code for note in off.notes}
    assert trained.tuning is not None
    assert trained.tuning.ships
    assert trained.formats == off.formats
    if trained.tuning.method == "sequential+scales":
        assert trained.tuning.tokens == plan.tuning.tokens // 2
        assert last[plan.memory] < after[plan.memory]
    else:  # beyond what noise may do, they gain nothing on so few tokens
        assert trained.tuning == plan.tuning
        assert last == after
    assert not (work / "run" / "rounding" / "tuning").exists()


def test_a_scale_per_block_ships_if_asked_for(work: Path) -> None:
    emit = ("emit", "--run", "run", "--budget", "6.5bpw", "--tokens", "256", "--dynamic-option")
    printed = succeed(*emit, "2", folder=work)
    out = work / "run" / "6.5bpw"
    plan, verification = Plan.read(out / "plan.json"), Verification.read(out / "verification.json")
    assert plan.dynamic_option == json.loads((out / "model" / "config.json").read_text())["dynamic_option"] == 2
    assert all(fmt.allows_block_activations for fmt in plan.formats.values())
    built = verification.model("plan")
    assert built is not None
    token, block = (built.accuracy("low", dynamic_option=option) for option in (0, 2))
    assert token is not None
    assert block is not None
    assert built.accuracy("low") == block != token
    # garbled activations would lose a thousand times more than they save
    assert built.emulated_nats["low"] == pytest.approx(block.kl_nats, rel=0.1)
    assert re.search(r"^ *option 0 .*\de-\d", printed, re.MULTILINE)
    assert "dynamic_option: activations scaled by token" in (out / "report.md").read_text(encoding="utf-8")
    uniform = verification.model("int8")
    assert uniform is not None
    assert uniform.dynamic_option == 0


def test_blocks_that_do_not_divide_are_said_and_the_exporters_are_measured(work: Path) -> None:
    table = SensitivityTable.read(work / "run" / "sensitivity.parquet")
    odd = [spec for spec in table.model.tensors if spec.in_features % 64]
    for spec in odd:
        formats = {fmt.name for fmt in table.formats_of(spec.name)}
        assert {"int4-b0", "int4-b4"} <= formats
        assert any(f"rows of {spec.in_features} weights" in str(note) for note in table.notes)
    assert bool(odd) == any("do not divide" in str(note) for note in table.notes)


def test_an_edited_plan_is_built_and_verified(work: Path) -> None:
    succeed("emit", "--run", "run", "--budget", "int8", "--no-build", folder=work)
    document = json.loads((work / "run" / "int8" / "plan.json").read_text())
    for tensor in document["tensors"]:
        if tensor["kind"] == "down_proj":
            tensor["format"] = "fp16"
    (work / "mine.json").write_text(json.dumps(document, indent=1))
    printed = succeed("emit", "--run", "run", "--plan", "mine.json", "--tokens", "256", folder=work)
    assert "llm.mnn read back" in printed
    plan = Plan.read(work / "run" / "mine" / "plan.json")
    assert {t.format.name for t in plan.tensors if t.kind == "down_proj"} == {"fp16"}
    verification = Verification.read(work / "run" / "mine" / "verification.json")
    built = verification.model("plan")
    assert built is not None
    assert (built.files.weight, built.files.embedding) == (plan.files.weight, plan.files.embedding)


def test_models_to_time_on_a_phone(analyzed: Callable[[str], Path], tmp_path: Path) -> None:
    """What one command builds is what the other wants the times of."""
    work, out = analyzed("tied_model_dir"), tmp_path / "to-time"
    asked = ("--run", "run", "--target", "arm-dot")
    printed = succeed("profile", *asked, "--models", str(out), "--json", folder=work)
    page = DOCS / "reference" / "json.md"
    assert_documented(json.loads(printed), keys(page, "Every command") | keys(page, "Models to time of qplan profile"))
    built = [Path(name) for name in json.loads(printed)["built"]]
    assert sorted(built) == sorted(out.iterdir())
    assert {folder.name for folder in built} >= {"int8", "int4", "fp16"}
    for folder in built:
        assert check_folder(folder).errors == ()
        bits, own = {op.bits for op in read_linears(folder)}, QuantFormat.parse(folder.name).bits
        assert own in bits
        assert bits <= {own, 8}
    again = qplan("profile", *asked, "--models", str(out), folder=work)
    assert again.returncode == 2
    assert "name a new folder" in again.stderr
    rows = [
        line(folder.name, test, f"{10.0 + place:.2f} ± 0.01")
        for place, folder in enumerate(built)
        for test in ("pp128", "tg32")
    ]
    (tmp_path / "pixel.md").write_text(table(HEAD, *rows), encoding="utf-8")
    succeed("profile", *asked, "--from", str(tmp_path / "pixel.md"), folder=work)
    assert DeviceProfile.read(work / "run" / "device.json").machine == "pixel"
    succeed("plan", "--run", "run", "--budget", "int8", "--max-decode-ms", "1000", "--target", "arm-dot", folder=work)
    (work / "run" / "device.json").unlink()


def test_limits_on_time_ram_and_loss(analyzed: Callable[[str], Path]) -> None:
    work = analyzed("tied_model_dir")  # one model is enough: profiles build many
    emit = ("emit", "--run", "run", "--no-build")
    needs = qplan(*emit, "--max-decode-ms", "1", folder=work)
    assert needs.returncode == 2
    assert "qplan profile" in needs.stderr
    printed = succeed("profile", "--run", "run", "--rounds", "1", "--prompt-tokens", "16", "--json", folder=work)
    page = DOCS / "reference" / "json.md"
    assert_documented(json.loads(printed), keys(page, "Every command") | keys(page, "qplan profile"))
    profile = DeviceProfile.read(work / "run" / "device.json")
    assert min(profile.base_decode_ms, profile.base_prefill_ms) > 0
    assert not (work / "run" / "profile").exists()
    limit = f"{profile.base_decode_ms * 1.5:.6f}"
    succeed(*emit, "--max-decode-ms", limit, "--max-ram", "1MB", "--budget", "int8,5MB", folder=work)
    plan = Plan.read(next((work / "run").glob("int8-5mb-*/plan.json")))
    assert [limit.name for limit in plan.limits] == ["RAM", "decode time", "prefill time"]
    assert {limit.of for limit in plan.limits} <= {"", "int8"}  # of two on the same, the lower one
    assert all(limit.predicted <= limit.limit for limit in plan.limits)
    printed = succeed(*emit, "--objective", "smallest", "--max-kl", "0.01", folder=work)
    assert "of 0.0" in printed
    smallest = Plan.read(work / "run" / "smallest-max-kl-0.01" / "plan.json")
    assert smallest.objective == "file size"
    assert any("held-out tokens the whole model loses" in str(note) for note in smallest.notes)
    none = qplan(*emit, "--max-ram", "1kB", folder=work)
    assert none.returncode == 3
    assert "the nearest is RAM" in none.stderr


@pytest.mark.parametrize("keep_bytes", [0, 1 << 40])
def test_a_killed_profile_goes_on_with_its_times_and_not_with_its_models(
    work: Path, keep_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qplan.jobs.profile._KEEP_BYTES", keep_bytes)
    run, scratch = RunFolder(work / "run"), tmp_path / "profile"
    table = SensitivityTable.read(run.sensitivity)
    skeleton = run_skeleton(run, load_analyzed(run, table.model, print).loaded, None, print)
    seen: list[tuple[int, int]] = []

    def killed(done: int, total: int) -> None:
        assert total == 4
        seen.append((done, len(list(scratch.glob("models/*")))))
        if len(seen) == 3:
            raise KeyboardInterrupt

    def timed() -> dict[str, list[Times]]:
        return measure_times(
            table.model,
            skeleton,
            {fmt.name: uniform_formats(table.model, fmt.bits) for fmt in (INT8, INT4)},
            table.goal,
            scratch=scratch,
            options=ProfileOptions(prompt_tokens=16, decode_tokens=2, repeats=2, rounds=2),
            say=print,
            progress=killed,
        )

    with pytest.raises(KeyboardInterrupt):
        timed()
    kept = json.loads((scratch / "times.json").read_text())["times"]
    assert sorted(map(len, kept.values())) == [1, 2]
    assert [path.name for path in scratch.iterdir()] == ["times.json"]
    (scratch / "models" / "0").mkdir(parents=True)  # as a kill -9 leaves it; no model
    times = timed()
    assert all(min(time.prefill_ms, time.decode_ms) > 0 for rounds in times.values() for time in rounds)
    assert {k: [[t.prefill_ms, t.decode_ms] for t in rounds][: len(kept[k])] for k, rounds in times.items()} == kept
    assert [len(rounds) for rounds in times.values()] == [2, 2]
    models = [1, 2, 1] if keep_bytes else [1, 0, 1]
    assert seen == [*enumerate(models, 1), *enumerate([0, 0, 0, 0], 1)]
    assert not scratch.exists()


def test_the_report_of_a_real_run_leaks_no_english_into_chinese(work: Path) -> None:
    out, sha256 = work / "run" / "int4", sha256_file(work / "run" / "int4" / "plan.json")
    english = (out / "report.html").read_text(encoding="utf-8")
    succeed("report", "int4", "--run", "run", "--lang", "zh", folder=work)
    page, short = ((out / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert english_sentences(page) == []
    assert english_sentences(f"<p>{re.sub(r'`[^`]*`', '', short)}</p>") == []
    # the commands that made it are kept
    commands, kept = (re.findall(r"<pre.*?</pre>", text, re.DOTALL) for text in (english, page))
    assert commands == kept != []
    assert sha256_file(out / "plan.json") == sha256
    succeed("report", "int4", "--run", "run", folder=work)
    assert (out / "report.html").read_text(encoding="utf-8") == english


def test_configs_alone(work: Path) -> None:
    succeed("emit", "--run", "run", "--budget", "6bpw", "--no-build", folder=work)
    out = work / "run" / "6bpw"
    reports = {"report.html", "report.json", "report.md", "frontier.json"}
    assert {path.name for path in out.iterdir()} == {"plan.json", "quant_config.json", *reports}


def test_a_budget_below_the_smallest_plan_names_it(work: Path) -> None:
    done = qplan("emit", "--run", "run", "--budget", "1kB", "--no-build", folder=work)
    assert done.returncode == 3
    assert "smallest" in done.stderr
    assert not (work / "run" / "1kb").exists()


def test_the_plan_is_the_last_rung_of_the_ladder_folded_or_not(work: Path) -> None:
    succeed("emit", "--budget", "int8", "--run", "run", "--tokens", "256", folder=work)
    source = SensitivityTable.read(work / "run" / "sensitivity.parquet").model.source
    short = ("--text", "text.txt", "--tokens", "64", "--seq-len", "64")
    printed = succeed("ladder", source, "--run", "run", *short, "--json", folder=work)
    rungs = {rung["name"]: rung for rung in json.loads(printed)["rungs"]}
    assert list(rungs) == ["fp32", "fp16", "int8", "int4", "plan"]
    assert rungs["plan"]["exact_error"] <= rungs["plan"]["exact_limit"]
    assert rungs["plan"]["kl_nats"] < rungs["int4"]["kl_nats"]
    page = DOCS / "reference" / "json.md"
    assert_documented(json.loads(printed), keys(page, "Every command") | keys(page, "qplan ladder"))


def test_another_calibration_is_refused_and_restart_accepts_it(work: Path) -> None:
    table = SensitivityTable.read(work / "run" / "sensitivity.parquet")
    before = {path: path.read_bytes() for path in (work / "run").rglob("*.safetensors")}
    fold = (work / "run" / "fold.json").read_bytes()
    (work / "other.txt").write_text(words(4000, seed=1))
    other = ("analyze", table.model.source, "--calib", "other.txt", "--run", "run", *ANALYZE)
    refused = qplan(*other, folder=work)
    assert refused.returncode == 4
    assert "--restart" in refused.stderr
    # what the finished table stands on is still there
    assert {path: path.read_bytes() for path in (work / "run").rglob("*.safetensors")} == before
    assert (work / "run" / "fold.json").read_bytes() == fold
    assert SensitivityTable.read(work / "run" / "sensitivity.parquet").sha256 == table.sha256


@pytest.mark.parametrize("text", ["", "too short"])
def test_useless_texts_leave_nothing(tied_model_dir: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "text.txt").write_text(text)
    done = qplan("analyze", str(tied_model_dir), "--calib", "text.txt", "--run", "run", *ANALYZE, folder=tmp_path)
    assert done.returncode == 2
    assert "text.txt" in done.stderr
    assert not (tmp_path / "run").exists()


_ANY_LOSSES = ("--mode", "gradient", "--fold", "off", "--rounding", "rtn")
"""Options of an analysis whose losses nothing depends on."""


def test_an_export_that_is_wrong_for_reasons_that_no_table_knows_is_refused_before_planning(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        rope_parameters={
            # the exporter takes the ratio of the contexts, 4, for the factor
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 64.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": 64,
        },
    )
    model = save(LlamaForCausalLM(config), tmp_path / "longrope")
    (tmp_path / "text.txt").write_text(words(2000))
    limited = ("--max-context", "64", *ANALYZE, *_ANY_LOSSES)
    succeed("analyze", str(model), "--calib", "text.txt", "--run", "run", *limited, folder=tmp_path)
    done = qplan("emit", "--run", "run", "--tokens", "128", folder=tmp_path)
    assert done.returncode == 7
    assert "computes other logits" in done.stderr
    assert "rope_parameters.rope_type longrope" in done.stderr
    assert not (tmp_path / "run" / "int8").exists()
