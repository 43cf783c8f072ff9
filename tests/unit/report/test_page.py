from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape

from qplan.errors import StaleArtifactError
from qplan.notes import note, text_note
from qplan.report.frontier import frontier_markdown
from qplan.report.page import render_html, render_markdown, write_report
from qplan.run.provenance import Provenance
from qplan.settings import Precision
from qplan.tensors import TensorSpec
from tests.support.invented_run import (
    Run,
    deep_run,
    make_run,
    plan_of,
    qwen_tensors,
    sensitivity,
    small_run,
    sweep_of,
    swept_run,
    untied_run,
    verification_of,
)


@pytest.fixture(name="deep")
def _deep() -> Run:
    return deep_run()


@pytest.fixture(name="small")
def _small() -> Run:
    return small_run()


VOID = {"meta", "br", "link", "img", "input", "hr", "wbr"}
HOSTILE = "model.layers.0.<script>alert('x')</script>&\"`|q_proj"


class Balance(HTMLParser):
    """Opens and closes every element in order, and remembers what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def parsed(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    return parser


def test_the_page_is_one_balanced_document_without_requests(small: Run) -> None:
    page = render_html(small.table, small.plan, small.verification, Provenance(("qplan emit --budget int8",)))
    found = parsed(page)
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert re.search(r"https?://|//cdn|@import|url\(", page) is None
    assert page.count("<svg") >= 8
    assert "qplan emit --budget int8" in page


def test_every_tensor_and_check_is_on_the_page(small: Run) -> None:
    page = render_html(small.table, small.plan, small.verification).replace("<wbr>", "")
    assert all(f">{tensor.name}<" in page for tensor in small.plan.tensors)
    assert all(escape(check.name) in page and escape(check.detail) in page for check in small.verification.checks)
    assert "PASS" in page


def test_same_input_same_bytes(small: Run) -> None:
    first, second = (render_html(small.table, small.plan, small.verification) for _ in range(2))
    assert first == second


def test_eighty_layers_and_six_formats_stay_small(deep: Run) -> None:
    page = render_html(deep.table, deep.plan, deep.verification)
    parsed(page)
    assert len(page.encode()) < 3_000_000
    assert all(tensor.name in page for tensor in deep.plan.tensors)


@pytest.mark.slow
def test_the_largest_models_have_shorter_pages() -> None:
    widths = ("fp16", *(f"int{bits}{block}" for bits in (8, 6, 5, 4, 3, 2) for block in ("", "-b0")))
    table = sensitivity(qwen_tensors(126, 256, 64, 768, 4096), widths, batches=1)
    largest = Run(table, plan := plan_of(table, "int4"), verification_of(plan))
    page = render_html(largest.table, largest.plan, largest.verification)
    parsed(page)
    assert len(page.encode()) < 3_000_000
    assert f"{7_500 // 13} most sensitive tensors of {126 * 7 + 1}" in page
    assert all(tensor.name in page for tensor in largest.plan.tensors)


def test_failures_are_at_the_top(small: Run) -> None:
    page = render_html(small.table, small.plan, verification_of(small.plan, failing=True))
    assert page.index("the plan is not worse than uniform int8, memory low") < page.index('id="plan"')
    assert "FAILED" in page


def test_a_plan_that_was_not_built(small: Run) -> None:
    page, short = render_html(small.table, small.plan, None), render_markdown(small.table, small.plan, None)
    parsed(page)
    assert "NOT VERIFIED" in page
    assert "NOT VERIFIED" in short
    assert "## Checks" not in short


def test_a_plan_that_was_not_proved_optimal(small: Run) -> None:
    plan = replace(small.plan, solver=replace(small.plan.solver, status="time limit", gap=0.012))
    assert "did not prove this plan optimal" in render_html(small.table, plan, small.verification)
    assert "Not proved optimal (time limit, gap 1.2 %)" in render_markdown(small.table, plan, small.verification)


def test_one_layer_whose_width_no_block_divides() -> None:
    run = make_run(1, ("fp16", "int8", "int4"), hidden=172)
    page = render_html(run.table, run.plan, run.verification)
    parsed(page)
    assert "stored as int4-b0" in page
    assert "∞" in page


def test_no_loss_anywhere(small: Run) -> None:
    table = replace(small.table, measurements=tuple(replace(m, kl_nats=0.0) for m in small.table.measurements))
    plan = plan_of(table)
    page = render_html(table, plan, verification_of(plan))
    parsed(page)
    assert "every measured loss is zero" in page


def test_nothing_to_compare_with(small: Run) -> None:
    unmeasured = tuple(replace(u, predicted_nats=None) for u in small.plan.uniform)
    slow = tuple(replace(m, speed=None, runs=m.runs[:1], emulated_nats={}) for m in small.verification.models)
    for plan in (replace(small.plan, uniform=()), replace(small.plan, uniform=unmeasured)):
        for verification in (None, replace(small.verification, models=())):
            page, short = render_html(small.table, plan, verification), render_markdown(small.table, plan, verification)
            parsed(page)
            assert "the loss of uniform" not in page + short
            assert "7.32 MB, KL 3.5e-4 nats/token predicted, not built." in short
        verification = replace(small.verification, models=slow)
        page, short = render_html(small.table, plan, verification), render_markdown(small.table, plan, verification)
        parsed(page)
        assert "0.68\N{MULTIPLICATION SIGN} the loss of uniform INT8" in short
        assert "Decode, tokens/s" not in page + short
    assert "Decode, tokens/s" in render_markdown(small.table, small.plan, small.verification)


def test_experts_share_a_cell_and_blocks_are_told_apart(small: Run) -> None:
    specs = [replace(s, kind="up_proj") if s.kind == "gate_proj" else s for s in small.table.model.tensors]
    table = sensitivity(tuple(specs), ("fp16", "int8", "int6", "int4", "int8-b32"))
    plan = plan_of(table)
    tensors = tuple(
        replace(t, format=replace(t.format, block=32)) if t.kind == "q_proj" and t.format.bits == 8 else t
        for t in plan.tensors
    )
    page = render_html(table, replace(plan, tensors=tensors), None)
    parsed(page)
    assert "int8-b32" in page
    assert "8\N{PRIME}" in page


def hostile_run() -> Run:
    run = make_run(2)
    specs: list[TensorSpec] = [
        replace(s, name=HOSTILE, kind="<b>q_proj") if i == 0 else s for i, s in enumerate(run.table.model.tensors)
    ]
    table = sensitivity(tuple(specs), run.table.conditions.formats)
    table = replace(
        table,
        model=replace(table.model, source="</title><script>evil()</script>"),
        notes=(text_note("<img src=x onerror=evil()>"), note("wide-scales", engine="<u>a | b")),
        conditions=replace(table.conditions, calibration="<u>text</u>"),
    )
    plan = replace(plan_of(table), budget="<b>1MB", notes=(text_note("</main>"),))
    return Run(table, plan, replace(verification_of(plan), text=text_note("</section><script>evil()</script>")))


def test_names_cannot_inject() -> None:
    run = hostile_run()
    commands = Provenance(("qplan emit '</pre><script>evil()</script>'",), {"<b>": "</dd>"}, "</p><b>")
    page = render_html(run.table, run.plan, run.verification, commands)
    found = parsed(page)
    assert found.tags.count("script") == 2
    assert not {"img", "u"} & set(found.tags)
    short = render_markdown(run.table, run.plan, run.verification, commands)
    outside_code = re.sub(r"```.*?```|``.*?``|`[^`\n]*`", "", short, flags=re.DOTALL)
    assert re.search(r"(?<!\\)<(script|img|u|b)\b", outside_code) is None


def test_markdown_has_the_numbers_and_whole_tables(small: Run) -> None:
    short = render_markdown(small.table, small.plan, small.verification)
    assert "**PASS**" in short
    assert "7.32 MB" in short
    assert "INT8" in short
    assert "| passed | the files fit the budget | 3,912,442 bytes of 3,934,106 (int8) |" in short
    rows = [line.count("|") for line in short.splitlines() if line.startswith("|")]
    blocks = [block for block in short.split("\n\n") if block.startswith("|")]
    assert len(rows) > 30
    for block in blocks:
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1
    assert "\n\n\n" not in short


def test_write_report(small: Run, tmp_path: Path) -> None:
    page, short = write_report(tmp_path / "int8", small.table, small.plan, small.verification)
    assert page.name == "report.html"
    assert short.read_text(encoding="utf-8").startswith("# qplan: qwen2-8m, budget int8\n")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("what", ["model", "sensitivity", "tensors", "verification"])
def test_artifacts_that_do_not_belong_together(small: Run, tmp_path: Path, what: str) -> None:
    plan, verification = small.plan, small.verification
    if what == "model":
        plan = replace(plan, model_sha256="0" * 64)
    elif what == "sensitivity":
        plan = replace(plan, sensitivity_sha256="0" * 64)
    elif what == "tensors":
        plan = replace(plan, tensors=plan.tensors[1:])
    else:
        verification = replace(verification, model_sha256="0" * 64)
    with pytest.raises(StaleArtifactError, match="qplan emit"):
        write_report(tmp_path, small.table, plan, verification)
    assert list(tmp_path.iterdir()) == []


def test_the_precision_that_ships_is_marked_among_those_that_were_proved(small: Run) -> None:
    pairs: tuple[tuple[Precision, Precision], ...] = (("low", "high"), ("high", "low"))
    for ships, other in pairs:
        plan = replace(small.plan, precision=ships)
        page = render_html(small.table, plan, small.verification)
        short = render_markdown(small.table, plan, small.verification)
        assert f"<td>arm-v8</td><td>{ships} (ships)</td>" in page
        assert f"| arm-v8 | {ships} (ships) |" in short
        assert f"| arm-v8 | {other} |" in short


def test_the_frontier_shows_an_untied_embedding_beside_the_head() -> None:
    run = untied_run()
    swept = sweep_of(run, 6)
    page = render_html(run.table, run.plan, run.verification, frontier=swept)
    stops = page.partition('id="stops"')[2].partition("</table>")[0]
    assert "<th>head</th><th>embed.</th>" in stops
    parts = [(row, re.findall(r'class="chip b\d+">(.*?)</span>', row)) for row in stops.split("<tr")[2:]]
    found = [[point.formats[name].name for name in ("lm_head", "model.embed_tokens")] for point in swept.points]
    assert len({own for _, own in found}) > 1
    assert [chips for row, chips in parts if "data-stop" in row] == found
    assert ["int8", "fp16"] in [chips for row, chips in parts if 'class="rival"' in row]
    assert "shares of the weights without the head and the embedding." in page
    short = frontier_markdown(run.table, swept)
    assert "| head | embedding | |" in short
    for head, own in found:
        assert f"| {head} | {own} |" in short
    tied = small_run()
    page = render_html(tied.table, tied.plan, tied.verification, frontier=swept_run())
    assert "<th>embed.</th>" not in page
    assert "shares of the weights without the head." in page
    assert "embedding" not in frontier_markdown(tied.table, swept_run())


def test_a_plan_for_another_engine_says_both() -> None:
    run, made = small_run(), Provenance(versions={"MNN": "3.6.1"})
    other = replace(run.plan, engine="3.5.0")
    page = render_html(run.table, other, run.verification, made)
    assert "for <b>MNN 3.5.0</b>; made with MNN 3.6.1." in page
    assert "For MNN 3.5.0; made with MNN 3.6.1." in render_markdown(run.table, other, run.verification, made)
    assert "on <b>MNN 3.6.1</b>." in render_html(run.table, run.plan, run.verification, made)
