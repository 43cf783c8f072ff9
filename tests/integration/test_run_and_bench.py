"""``qplan run`` and ``qplan bench`` on a folder that could be anyone's."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qplan as package
from qplan.mnn.runtime import RuntimeConfig
from tests.support.command import Done, qplan
from tests.support.documented import DOCS, assert_documented, keys

PAGE = DOCS / "reference" / "json.md"
PROMPT = "the quick brown"
TEMPLATE = "{% for m in messages %}a {{m['content']}} of {% endfor %}{% if add_generation_prompt %}the {% endif %}"


def hold(done: Done, command: str) -> None:
    assert done.returncode == 0, done.stderr
    assert_documented(done.document, keys(PAGE, "Every command") | keys(PAGE, f"qplan {command}"))


@pytest.fixture(scope="module")
def folder(good: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tied model in int8, with a chat template."""
    copy = tmp_path_factory.mktemp("mine") / "model"
    shutil.copytree(good["tied"], copy)
    path = copy / "llm_config.json"
    document = json.loads(path.read_text()) | {"jinja": {"chat_template": TEMPLATE}}
    path.write_text(json.dumps(document))
    return copy


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog; a model of language is a model. " * 30)
    return path


def test_an_answer_is_what_the_engine_generates_in_the_chat_template(folder: Path, tmp_path: Path) -> None:
    done = qplan("run", str(folder), PROMPT, "--max-tokens", "9", "--threads", "1", folder=tmp_path)
    with package.Engine(folder) as engine:
        rendered = engine.chat(PROMPT)
        assert rendered == f"a {PROMPT} of the "
        expected = "".join(engine.generate(rendered, 9))
        raw = "".join(engine.generate(PROMPT, 9))
    assert done.stdout == expected + "\n"
    assert "decode 9 at" in done.stderr
    assert "1 thread; chat template" in " ".join(done.stderr.split())
    plain = qplan("run", str(folder), PROMPT, "--max-tokens", "9", "--raw", "--json", folder=tmp_path)
    hold(plain, "run")
    assert (plain.document["text"], plain.document["template"]) == (raw, "off")
    assert plain.document["tokens"] == 9


def test_a_folder_without_a_template_gets_the_prompt_as_it_is(
    good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT + "\n"))
    done = qplan("run", str(good["untied"]), "-", "--json", "--max-tokens", "1", folder=tmp_path)
    hold(done, "run")
    assert done.document["template"] == "none"
    assert done.document["decode_tokens_per_s"] is None
    again = qplan("run", str(good["untied"]), PROMPT, "--json", "--max-tokens", "1", folder=tmp_path)
    assert again.document["text"] == done.document["text"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    empty = qplan("run", str(good["untied"]), "-", folder=tmp_path)
    assert empty.returncode == 2
    assert "holds no prompt" in empty.stderr


def test_the_context_bounds_an_answer(folder: Path, tmp_path: Path) -> None:
    long = qplan("run", str(folder), PROMPT, "--max-tokens", "1000000", folder=tmp_path)
    assert long.returncode == 2
    assert "exceed the context" in long.stderr


def test_agreement_is_that_of_the_logits(folder: Path, tied_model_dir: Path, text: Path, tmp_path: Path) -> None:
    judged = ("--text", str(text), "--tokens", "300", "--seq-len", "100", "--threads", "1")
    reference = ("--reference", str(tied_model_dir))
    done = qplan("bench", str(folder), *reference, *judged, "--json", folder=tmp_path)
    hold(done, "bench")
    found = done.document
    tokenizer = AutoTokenizer.from_pretrained(tied_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tied_model_dir, dtype=torch.float32).eval()
    ids = np.array(tokenizer(text.read_text(), add_special_tokens=False)["input_ids"][:300]).reshape(3, 100)
    kl, top1, top5, nll = [], [], [], []
    with package.Engine(folder, RuntimeConfig()) as engine, torch.no_grad():
        for row in ids:
            theirs = torch.log_softmax(torch.from_numpy(engine.logits(row)).double(), -1)
            ours = torch.log_softmax(model(torch.from_numpy(row)[None]).logits[0].double(), -1)
            kl += (ours.exp() * (ours - theirs)).sum(-1).tolist()
            first, second = (one.argsort(-1, descending=True)[:, :5] for one in (ours, theirs))
            top1 += (first[:, 0] == second[:, 0]).tolist()
            top5 += [len(set(a.tolist()) & set(b.tolist())) / 5 for a, b in zip(first, second, strict=True)]
            nll += (-theirs[:-1].gather(-1, torch.from_numpy(row)[1:, None])).flatten().tolist()
    agreement = found["agreement"]
    assert agreement["kl_nats"] == pytest.approx(np.mean(kl), rel=1e-3)
    assert agreement["kl_p99_nats"] == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert agreement["kl_p999_nats"] == pytest.approx(np.quantile(kl, 0.999), rel=1e-3)
    assert agreement["top1"] == pytest.approx(np.mean(top1), abs=0.01)
    assert agreement["top5"] == pytest.approx(np.mean(top5), abs=0.01)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(nll)), rel=1e-4)
    assert (found["tokens"], found["seq_len"]) == (300, 100)
    # the engine's own tokenizer makes the same tokens of this text
    alone = qplan("bench", str(folder), *judged, "--json", folder=tmp_path)
    hold(alone, "bench")
    assert alone.document["agreement"] is None
    assert alone.document["perplexity"] == pytest.approx(found["perplexity"], rel=1e-6)
    shown = qplan("bench", str(folder), *judged, folder=tmp_path)
    assert "perplexity" in shown.stdout
    assert "KL" not in shown.stdout


def test_a_reference_of_other_tokens_is_refused(folder: Path, tied_model_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tied_model_dir, other)
    path = other / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    a, e = vocabulary["a"], vocabulary["e"]
    vocabulary |= {"a": e, "e": a}
    path.write_text(json.dumps(document))
    done = qplan("bench", str(folder), "--reference", str(other), folder=tmp_path, columns=400)
    assert done.returncode == 2
    assert "differ on everyday text" in done.stderr
    assert "leave --reference out" in done.stderr


def test_a_broken_folder_is_told_before_anything_is_loaded(corpus: dict[str, Path], tmp_path: Path) -> None:
    for arguments in (("run", "weights-cut", "hi"), ("bench", "weights-cut", "--reference", "nowhere/at/all/x")):
        command, name, *more = arguments
        done = qplan(command, str(next(path for key, path in corpus.items() if name in key)), *more, folder=tmp_path)
        assert done.returncode == 8, done.stderr
        assert "Remedy" in done.stderr


def test_perplexity_in_the_windows_of_ppl_eval(folder: Path, tied_model_dir: Path, text: Path, tmp_path: Path) -> None:
    """Written as that program computes it: windows overlap by a third, and each counts alike."""
    copy = tmp_path / "chunked"
    shutil.copytree(folder, copy)
    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chunk": 96}))
    asked = (str(copy), "--text", str(text), "--windows", "ppl_eval", "--tokens", "230", "--threads", "1")
    done = qplan("bench", *asked, "--reference", str(tied_model_dir), "--json", folder=tmp_path)
    hold(done, "bench")
    found = done.document
    assert (found["windows"], found["tokens"], found["seq_len"]) == ("ppl_eval", 224, 96)
    model = AutoModelForCausalLM.from_pretrained(tied_model_dir, dtype=torch.float32).eval()
    losses: list[float] = []
    exact: list[float] = []
    with package.Engine(copy, RuntimeConfig()) as engine, torch.no_grad():
        ids = np.array(engine.encode(text.read_text()))
        for begin, first in ((0, 1), (64, 96), (128, 160)):
            row = ids[begin : begin + 96]
            rows = slice(first - begin - 1, 95), row[first - begin :]
            for logits, into in ((engine.logits(row), losses), (model(torch.from_numpy(row)[None]).logits[0], exact)):
                likely = torch.log_softmax(torch.as_tensor(logits).double(), -1)[rows[0]]
                into.append(-float(likely.gather(-1, torch.from_numpy(rows[1])[:, None]).mean()))
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found["agreement"]["reference_perplexity"] == pytest.approx(np.exp(np.mean(exact)), rel=1e-4)
    shown = qplan("bench", *asked, folder=tmp_path)
    assert "224 tokens of" in shown.stdout
    assert "in windows of ppl_eval, 96" in " ".join(shown.stdout.split())
