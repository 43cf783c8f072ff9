"""Names and texts from outside are data wherever people read them."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from qplan.cost.file_bytes import estimate_fixed
from qplan.planner.frontier import frontier
from qplan.report import figures
from qplan.report.frontier import frontier_figure, frontier_markdown
from qplan.report.literal import figure_text, markdown, markdown_code, visible
from qplan.report.page import render_html, render_markdown
from qplan.run.provenance import Provenance
from tests.support.hostile import FLAT, NAME, named_run
from tests.support.invented_run import Run, small_run


@pytest.fixture(scope="module", name="run")
def _run() -> Run:
    return named_run()


class Shown(HTMLParser):
    """What a browser shows of a page: its text, and the names of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def flat(self) -> str:
        return " ".join(self.text.split())


def rendered(text: str) -> Shown:
    return Shown(MarkdownIt("commonmark").enable("table").render(text))


def test_markdown_keeps_names_whole() -> None:
    assert markdown("model.self_attn.q_proj") == "model.self_attn.q_proj"
    assert markdown("a|b <i>*x*</i>\n# c") == r"a\|b \<i\>\*x\*\</i\> \# c"
    assert markdown_code("a`b|c", in_table=True) == r"``a`b\|c``"
    assert markdown_code("a`b|c") == "``a`b|c``"


PLACES = {
    "text": "{}",
    "title": "# {}",
    "list": "- {}: x",
    "table": "| a | b |\n|---|---|\n| {} | 1 |",
    "bold": "**{}**",
}


@pytest.mark.parametrize("page", PLACES.values(), ids=PLACES)
def test_a_name_in_markdown_is_shown_as_it_is(page: str) -> None:
    shown = rendered(page.format(markdown(NAME)))
    assert FLAT in shown.flat
    assert "img" not in shown.tags
    coded = rendered(page.format(markdown_code(NAME, in_table=page.startswith("|"))))
    assert FLAT in coded.flat
    assert "img" not in coded.tags


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert visible("a\x1b[31m\x9b\x7f\u202eb\tc\nd") == "a\\x1b[31m\\x9b\\x7f\\u202eb\tc\nd"
    assert visible("模型-é-😀👩\u200d🚀") == "模型-é-😀👩\u200d🚀"


def test_a_name_in_both_reports(run: Run) -> None:
    commands = Provenance((f"qplan emit --run {NAME}",), {NAME: NAME}, NAME)
    page = Shown(render_html(run.table, run.plan, run.verification, commands))
    short = rendered(render_markdown(run.table, run.plan, run.verification, commands))
    for shown in (page, short):
        assert shown.flat.count(FLAT) > 8
        assert not {"img", "bold"} & shown.tags
        assert not shown.handlers


def test_a_name_in_the_frontier_and_in_figures(run: Run) -> None:
    swept = frontier(run.table, estimate_fixed(run.table.model), points=3)
    assert f"Frontier of {FLAT}" in rendered(frontier_markdown(run.table, swept)).flat
    plain = small_run()
    named = figures.plan_map(plain.table, replace(plain.plan, budget=NAME))
    drawn: list[Figure] = [frontier_figure(run.table, swept), named]
    for figure in drawn:
        figure.savefig(BytesIO(), format="png", dpi=30)


@pytest.mark.parametrize("name", ["$\\frac$", "a$b", "$$", NAME])
def test_dollars_begin_no_formula(name: str) -> None:
    figure = Figure()
    label = figure.text(0, 0, figure_text(name))
    figure.savefig(BytesIO(), format="png", dpi=30)
    assert label.get_text().replace(r"\$", "$") == visible(name)
