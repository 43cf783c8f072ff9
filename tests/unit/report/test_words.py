# ruff: noqa: RUF001 - Chinese
from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from qplan.choosing.repair import REPAIRED
from qplan.notes import Note, note, text_note
from qplan.notes.catalog import CATALOG as NOTES
from qplan.notes.sentence import places
from qplan.planner.solver.program import Status
from qplan.planner.validate import EDITED
from qplan.report.page import marked, render_html, render_markdown
from qplan.report.words import ENGLISH, Language, words_of
from tests.support.invented_run import (
    Run,
    deep_run,
    make_run,
    small_run,
    sweep_of,
    swept_run,
    untied_run,
    verification_of,
)
from tests.support.messages import HOME, every_message
from tests.support.prose import english_sentences

CATALOG = json.loads((HOME / "locales" / "zh.json").read_text(encoding="utf-8"))
CHINESE = words_of(Language.zh)


def test_every_message_is_translated_and_no_translation_is_stale() -> None:
    assert set(CATALOG["messages"]) == every_message()


def test_translations_fill_the_same_places() -> None:
    wrong = [message for message, other in CATALOG["messages"].items() if places(message) != places(other)]
    assert wrong == []


@pytest.mark.parametrize("language", [language for language in Language if language is not Language.en])
def test_every_note_has_a_sentence_in_every_language_with_the_same_places(language: Language) -> None:
    words = words_of(language)
    assert set(words.notes) == set(NOTES)
    assert {code: places(told) for code, told in words.notes.items()} == {
        code: set(kind.fields) for code, kind in NOTES.items()
    }


def test_no_space_stands_between_chinese_characters_whatever_fills_a_place() -> None:
    assert CHINESE("Measured on {text}.", text="留出片段") == "在留出片段上实测。"
    assert CHINESE("Measured on {text}.", text="wikitext2") == "在 wikitext2 上实测。"
    assert marked(CHINESE)("Measured on {text}.", text="<a> 的留出片段") == "在 &lt;a&gt; 的留出片段上实测。"
    larger = "Larger, {size} of files, predicted to lose {lost} what this plan loses:"
    assert CHINESE(larger, size="3.7 MB", lost="0.65×") == "更大，文件 3.7 MB，预计损失为本方案的 0.65 倍："
    assert CHINESE(larger, size="3.7 MB", lost="一半") == "更大，文件 3.7 MB，预计损失为本方案的一半："


def test_every_way_in_which_a_solver_ends_has_a_name() -> None:
    assert set(CHINESE.statuses) == {*(status.value for status in Status), REPAIRED, EDITED}
    assert CHINESE.status("of a newer version") == "of a newer version"
    assert ENGLISH.status("repaired") == "repaired"


def test_translations_are_chinese_with_the_same_elements() -> None:
    kept = {"memory", "tokens/s", "head", "the head", "embed."}  # MNN's users say lm_head and embedding
    for message, other in CATALOG["messages"].items():
        assert message in kept or re.search(r"[\u3000-\u9fff\uff00-\uffef]", other), message
        assert sorted(re.findall(r"</?\w+>", message)) == sorted(re.findall(r"</?\w+>", other)), message


_HAN = r"[\u3400-\u9fff]"
_MISPLACED = re.compile(rf"{_HAN}[A-Za-z0-9]|[A-Za-z0-9]{_HAN}|  |^ | $| [，。：；、（）]|[，。：；、（）] |\d %")
"""A space stands between Chinese and Latin letters or numbers, and nowhere else; none before a percent sign."""

_NOT_OF_THE_TRADE = re.compile(r"取整|输出头|词元|首选 token|仿真|\d 位(?!宽)|\} 位(?!宽)|统一 (INT|\{)")
"""Chinese that people who use MNN don't: they write 舍入, lm_head, token, Top-1, 模拟, 8 bit, 全 INT4."""


@pytest.mark.parametrize("part", ["messages", "notes"])
def test_chinese_is_spaced_by_one_convention_and_in_the_words_of_the_trade(part: str) -> None:
    for message, other in CATALOG[part].items():
        literal = re.sub(r"<[^>]+>", "\n", re.sub(r"\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}", "\0", other))
        assert not _MISPLACED.search(literal), message
        assert not _NOT_OF_THE_TRADE.search(other), message


def test_quotients_in_chinese_sentences_are_written_in_times() -> None:
    told = CHINESE("{time} the time of {base}", time="0.10×", base="int8")
    assert told == "耗时为 int8 的 0.10 倍"
    assert CHINESE("{time} the time of {base}", time="1.04× (1.03–1.05)", base="int8").endswith("1.04 倍 (1.03–1.05)")
    assert ENGLISH("{time} the time of {base}", time="0.10×", base="int8") == "0.10× the time of int8"


GAIN = {"prefill": 0.85, "decode": 1.594}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (note("plan-logits"), "方案：量化后的权重相同"),
        (note("ops-right", right=43, count=43), "43 个算子中有 43 个"),
        (
            note("ops-wrong", right=40, count=43, wrong=["a", "b"], unknown=[]),
            "43 个算子中有 40 个的位宽与分块正确；错误：a、b，未知：无",
        ),
        (
            note(
                "block-changed",
                format="int4",
                choices=["int4-b0", "int4-b4"],
                tensors=["k", "q", "v"],
                others=9,
                block=64,
                row_weights=172,
            ),
            "k、q、v 等，另有 9 个：int4 改用 int4-b0 和 int4-b4，因为",
        ),
        (note("block-scales-asked-for", **GAIN), "decode 的损失为 1.59 倍"),
        (note("routers-by-rule", format="fp16", count=6, name="mlp.gate"), "路由器为 fp16（共 6 个）"),
        (note("routers-rounded", rounded=2, count=6), "6 个路由器中有 2 个"),
        (note("losses-apart", torch_nats=3.5e-5, engine_nats=3.5e-5, difference=0.0, limit=0.25), "限值 25%"),
        (note("folded", ratios={"int8, memory low": 0.851, "int4, memory low": 0.9}), "int8, memory low：0.85；int4"),
        (note("too-few-tokens", least_tokens=256, tokens={"q": 12}, others=0), "q（12）；请提供"),
        (text_note("something that nobody has translated"), "something that nobody has translated"),
        (Note("of-a-newer-version", {"bytes": 3}), "of-a-newer-version: bytes = 3"),
        (Note("routers-rounded", {"rounded": "all"}), 'routers-rounded: rounded = "all"'),
    ],
)
def test_notes_are_told_in_chinese(found: Note, told: str) -> None:
    assert told in CHINESE.note(found)
    assert ENGLISH.note(found) == str(found)


def test_a_message_that_the_catalog_lacks_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        CHINESE("Not a message of the report")


def runs() -> dict[str, Run]:
    small = small_run()
    failing = Run(small.table, small.plan, verification_of(small.plan, failing=True))
    unproved = replace(small.plan, solver=replace(small.plan.solver, status="time limit", gap=0.012))
    return {
        "verified": small,
        "failing": failing,
        "deep": deep_run(),
        "odd": make_run(1, ("fp16", "int8", "int4"), hidden=172),
        "untied": untied_run(),
        "old engine": Run(small.table, replace(small.plan, engine="3.5.0"), small.verification),
        "unproved": Run(small.table, unproved, small.verification),
    }


@pytest.mark.parametrize("name", runs())
def test_no_english_is_left_in_chinese_reports(name: str) -> None:
    run = runs()[name]
    frontier = swept_run() if name in ("verified", "failing") else sweep_of(run, 6) if name == "untied" else None
    for verification in (run.verification, None):
        page = render_html(run.table, run.plan, verification, frontier=frontier, words=CHINESE)
        short = render_markdown(run.table, run.plan, verification, words=CHINESE)
        short = re.sub(r"```.*?```|`[^`]*`", "", short, flags=re.DOTALL)
        assert english_sentences(f"{page}<p>{short}</p>") == []
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
