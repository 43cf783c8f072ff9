from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import qplan
from qplan.report.page import render_html, render_markdown
from qplan.report.words import ENGLISH, Language, words_of
from tests.support.invented_run import Run, deep_run, make_run, small_run, swept_run, verification_of
from tests.support.messages import HOME, every_message
from tests.support.prose import english_sentences

CATALOG = json.loads((HOME / "locales" / "zh.json").read_text(encoding="utf-8"))
CHINESE = words_of(Language.zh)

PRODUCERS = (
    "verify/checks.py",
    "planner/planning.py",
    "planner/validate.py",
    "choosing/retarget.py",
    "jobs/analyze.py",
    "jobs/auto.py",
    "folding/decide.py",
    "choosing/choose.py",
    "choosing/loss_limits.py",
    "choosing/activations.py",
    "choosing/repair.py",
    "jobs/emit_job.py",
    "sensitivity/analysis.py",
    "sensitivity/menu.py",
    "quantize/rounder.py",
)


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_every_message_is_translated_and_no_translation_is_stale() -> None:
    assert set(CATALOG["messages"]) == every_message()


@pytest.mark.parametrize("part", ["messages", "stored", "parts"])
def test_translations_fill_the_same_places(part: str) -> None:
    wrong = [message for message, other in CATALOG[part].items() if places(message) != places(other)]
    assert wrong == []


def test_translations_are_chinese_with_the_same_elements() -> None:
    kept = {"memory", "tokens/s"}
    for message, other in CATALOG["messages"].items():
        assert message in kept or re.search(r"[\u3000-\u9fff\uff00-\uffef]", other), message
        assert sorted(re.findall(r"</?\w+>", message)) == sorted(re.findall(r"</?\w+>", other)), message


def stored_literals() -> Iterator[tuple[str, str]]:
    """The fixed parts of what producers write into notes and checks, from their source."""
    for name in PRODUCERS:
        path = Path(qplan.__file__).parent / name
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            # `why` is part of a note in the pipeline, and of an error in the planner
            for value in _told(node, ("note", "notes", "detail", *(["why"] if name.startswith("pipeline") else []))):
                parts = value.values if isinstance(value, ast.JoinedStr) else [value]
                for part in parts:
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield name, part.value


def _told(node: ast.AST, told: tuple[str, ...]) -> Iterator[ast.expr]:
    """String expressions that become a note, or a check's name or detail."""
    texts: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        texts = [node.value] if any(isinstance(t, ast.Name) and t.id in told for t in targets) else []
    elif isinstance(node, ast.Call):
        called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        of_notes = called == "append" and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
        if called in ("Check", "_noted") or (of_notes and node.func.value.id == "notes"):  # type: ignore[attr-defined]
            texts = list(node.args)
        texts += [word.value for word in node.keywords if word.arg == "notes"]
    elif isinstance(node, ast.FunctionDef) and re.search(r"(^|_)notes?($|_)|^__str__$", node.name):
        texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Return | ast.Yield) and part.value]
    for text in texts:
        yield from (part for part in ast.walk(text) if isinstance(part, ast.JoinedStr | ast.Constant))


def test_whatever_is_stored_for_people_is_in_the_catalog() -> None:
    known = "\n".join([*CATALOG["stored"], *CATALOG["parts"]])
    told = [(name, text.strip(" ;:,.()")) for name, text in stored_literals()]
    long = [(name, text) for name, text in told if len(text.split()) >= 3 and re.match(r"[\w(]", text)]
    assert len(long) > 30
    assert [(name, text) for name, text in long if text not in known] == []


GAIN = "0.85 times the loss in prefill and 1.59 in decode (held-out tokens)"


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ("plan: the engine's logits equal torch's with the same stored weights", "方案"),
        ("43 of 43 ops have their bits and block", "43 个算子中有 43 个"),
        ("int4 became int4-b0 and int4-b4 for q: blocks of 64 do not divide rows of 172 weights", "int4-b0 和 int4-b4"),
        (f"a scale per block of the activations (dynamic_option 2), as asked for: {GAIN}", "解码的损失为 1.59 倍"),
        ("rule: routers are fp16 (6 of them); --pin '*.mlp.gate=int8' overrides it", "路由器为 fp16"),
        ("2 of 6 routers are rounded: tokens may be sent to other experts", "6 个路由器中有 2 个"),
        ("3.5e-05 and 3.5e-05 nats per token, 0.0% apart, limit 25%", "限值 25%"),
        ("something that nobody has translated", "something that nobody has translated"),
    ],
)
def test_stored_sentences_are_found_by_their_wording(stored: str, told: str) -> None:
    assert told in CHINESE.stored(stored)
    assert ENGLISH.stored(stored) == stored


def test_a_message_that_the_catalog_lacks_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        CHINESE("Not a message of the report")


# what the made-up run's artifacts say in English of their own
INVENTED = re.compile(
    r"WikiText-2|loss not above|size within|off by|emulation agrees|logits match|every (op|key)|ops read back|"
    r"tied to the embedding: int2 and int3|\d+ keys|rel \d"
)


def runs() -> dict[str, Run]:
    small = small_run()
    failing = Run(small.table, small.plan, verification_of(small.plan, failing=True))
    unproved = replace(small.plan, solver=replace(small.plan.solver, status="time limit", gap=0.012))
    return {
        "verified": small,
        "failing": failing,
        "deep": deep_run(),
        "odd": make_run(1, ("fp16", "int8", "int4"), hidden=172),
        "unproved": Run(small.table, unproved, small.verification),
    }


@pytest.mark.parametrize("name", runs())
def test_no_english_is_left_in_chinese_reports(name: str) -> None:
    run = runs()[name]
    frontier = swept_run() if name in ("verified", "failing") else None
    for verification in (run.verification, None):
        page = render_html(run.table, run.plan, verification, frontier=frontier, words=CHINESE)
        short = render_markdown(run.table, run.plan, verification, words=CHINESE)
        short = re.sub(r"```.*?```|`[^`]*`", "", short, flags=re.DOTALL)
        leaks = [line for line in english_sentences(f"{page}<p>{short}</p>") if not INVENTED.search(line)]
        assert leaks == []
        assert '<html lang="zh-CN">' in page
        data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
        assert all(re.search(r"[\u4e00-\u9fff]", said) for said in data["words"].values())


def test_english_is_noticed() -> None:
    page = "<p title='a tensor was left out'>好</p><pre>qplan emit all of it</pre><p>the loss is large</p>"
    assert english_sentences(page) == ["a tensor was left out", "the loss is large"]
    run = small_run()
    assert len(english_sentences(render_html(run.table, run.plan, run.verification))) > 30


def test_english_stays_the_default() -> None:
    run = small_run()
    page = render_html(run.table, run.plan, run.verification)
    assert '<html lang="en">' in page
    assert not re.search(r"[\u4e00-\u9fff]", page)
