"""The report in headless Chromium: silent, offline, and every interactive thing does what it should."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from qplan.formats import INT4
from qplan.report import grid, notation, plan_map
from qplan.report.grid import loss_table
from qplan.report.page import render_html
from qplan.report.words import Language, words_of
from qplan.run.verification import Verification
from tests.support.invented_run import make_run, small_run, sweep_of, swept_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH: apt install chromium"
)

LANGUAGES, WIDTHS, SCHEMES = ("en", "zh"), (1440, 390), ("light", "dark")


@dataclass
class Opened:
    """A page and what it did."""

    page: Page
    url: str
    said: list[str] = field(default_factory=list)
    """Console messages and uncaught errors."""
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a run with a frontier in every language, one without a frontier, one too large for details."""
    folder, run = tmp_path_factory.mktemp("reports"), small_run()
    pages = {
        name: render_html(run.table, run.plan, run.verification, frontier=swept_run(), words=words_of(Language(name)))
        for name in LANGUAGES
    }
    wide = make_run(6, ("fp16", *(f"int{bits}{block}" for bits in (8, 6, 5, 4, 3, 2) for block in ("-b0", ""))))
    pages["wide"] = render_html(wide.table, wide.plan, wide.verification, frontier=sweep_of(wide, 12))
    for language in LANGUAGES:
        pages[f"fast-{language}"] = render_html(
            run.table, run.plan, fast(run.verification), words=words_of(Language(language))
        )
    pages["bare"] = render_html(run.table, run.plan, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "DETAILED_CELLS", 100)
        pages["brief"] = render_html(run.table, run.plan, run.verification, frontier=swept_run())
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


def fast(verification: Verification) -> Verification:
    """Speeds of a small model on a large machine: numbers of five digits."""
    models = [
        replace(m, speed=replace(m.speed, prefill_tokens_per_s=15_100.0, decode_tokens_per_s=88_800.0))
        for m in verification.models
        if m.speed is not None
    ]
    return replace(verification, models=tuple(models))


@contextmanager
def opened(
    browser: Browser, report: Path, width: int = 1440, scheme: str = "light", **options: Any
) -> Iterator[Opened]:
    """A report from its file; it must have been silent and asked for nothing when it closes."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)  # type: ignore[arg-type]
    found = Opened(context.new_page(), report.as_uri())
    found.page.on("console", lambda message: found.said.append(message.text))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.goto(found.url)
    yield found
    context.close()
    assert found.said == []
    assert set(found.requests) == {found.url}


# every visible text against what is painted behind it, by WCAG 2.2; transparent layers are mixed
FAINT_TEXTS = """() => {
  const parse = (color) => {
    const mixed = color.match(/^color\\(srgb ([\\d.e-]+) ([\\d.e-]+) ([\\d.e-]+)(?: \\/ ([\\d.e-]+))?\\)$/);
    if (mixed) return [...mixed.slice(1, 4).map((v) => 255 * v), Number(mixed[4] ?? 1)];
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const own = parse(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(element.parentElement));
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => p - q);
    return (y + 0.05) / (x + 0.05);
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].filter((n) => n.nodeType === 3);
    const text = own.map((n) => n.textContent.trim()).join("");
    if (!text || !element.checkVisibility() || element.matches("script, title, option")) continue;
    const style = getComputedStyle(element);
    const inPicture = element instanceof SVGElement;
    const box = element.parentElement.matches("g.heat, g.bits") && element.parentElement.querySelector("rect");
    const around = inPicture ? element.closest("svg").parentElement : element;
    const ground = box ? parse(getComputedStyle(box).fill).slice(0, 3) : behind(around);
    const ink = over(parse(inPicture ? style.fill : style.color), ground);
    const ratio = contrast(ink, ground);
    if (ratio < 4.5) faint.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""

# texts of figures that leave their figure, and controls that leave the page; lines are taken to be as high as Noto Sans
# CJK makes them, whatever the machine's own fonts are
CLIPPED = """() => {
  const clipped = [];
  for (const text of document.querySelectorAll("svg text")) {
    const [own, all] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
    const onScreen = text.getScreenCTM();
    const baseline = text.getStartPositionOfChar(0).matrixTransform(onScreen).y;
    const em = parseFloat(getComputedStyle(text).fontSize) * onScreen.d;
    const [top, bottom] = [baseline - 1.16 * em, baseline + 0.288 * em];
    if (own.left < all.left - 1 || own.right > all.right + 1 || top < all.top - 1 || bottom > all.bottom + 1)
      clipped.push(text.textContent);
  }
  for (const control of document.querySelectorAll("button, input, select, .tile, .verdict, nav a")) {
    const box = control.getBoundingClientRect();
    if (!control.closest(".scroll") && (box.left < 0 || box.right > innerWidth)) clipped.push(control.outerHTML);
  }
  return clipped;
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_fits_and_can_be_read(
    browser: Browser, reports: dict[str, Path], language: str, width: int, scheme: str
) -> None:
    with opened(browser, reports[language], width, scheme) as report:
        page = report.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CLIPPED) == []
        assert page.evaluate(FAINT_TEXTS) == []
        assert page.get_attribute("html", "lang") == {"en": "en", "zh": "zh-CN"}[language]
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 21, 25)"
        assert dark == (scheme == "dark")
        unnamed = (
            "[...document.querySelectorAll('button, input, select, [tabindex]')].filter((e) => e.checkVisibility()"
        )
        unnamed += " && !(e.ariaLabel || e.innerText || e.labels?.length)).map((e) => e.outerHTML.slice(0, 80))"
        assert page.evaluate(unnamed) == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("width", [320, 390, 800, 1440])
def test_long_numbers_keep_to_their_tiles(
    browser: Browser, reports: dict[str, Path], language: str, width: int
) -> None:
    beyond = "[...document.querySelectorAll('.tile dt, .tile dd')].filter((e) => e.scrollWidth > e.clientWidth)"
    with opened(browser, reports[f"fast-{language}"], width) as report:
        assert "15,100" in report.text(".tiles")
        assert report.page.evaluate(f"{beyond}.map((e) => e.innerText)") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_whole_pixels_high_so_that_the_fixed_column_meets_the_others(
    browser: Browser, reports: dict[str, Path], width: int
) -> None:
    rows = "[...document.querySelectorAll('#tensor-table tbody tr')]"
    with opened(browser, reports["zh"], width) as report:
        found = report.page.evaluate(f"{rows}.map((row) => row.getBoundingClientRect().height)")
        assert found
        assert all(height == round(height) for height in found)


def test_a_cell_tells_its_loss_its_bytes_and_where_they_come_from(browser: Browser, reports: dict[str, Path]) -> None:
    run = small_run()
    losses = loss_table(run.table)
    spec = next(s for s in run.table.model.tensors if s.name == "model.layers.2.mlp.down_proj")
    loss, place = losses.losses[spec.name]["int4"], [s.name for s in run.table.model.tensors].index(spec.name)
    cell = f'svg.map[data-f="{losses.formats.index("int4")}"] [data-t="{place}"]'
    low, high = (notation.loss(loss.kl_nats + sign * 1.96 * loss.stderr_nats) for sign in (-1, 1))
    expected = [
        spec.name,
        f"int4 · {notation.size(spec.bytes_in(INT4))} in the file",
        f"loss {notation.loss(loss.kl_nats)} ± {notation.loss(loss.stderr_nats)} nats/token",
        f"95 % interval {low} to {high}",
        f"SQNR {loss.sqnr_db:.1f} dB · measured",
    ]
    with opened(browser, reports["en"]) as report:
        page = report.page
        assert page.locator("svg.map title").count() == 0
        page.locator(cell).scroll_into_view_if_needed()
        page.hover(cell)
        assert report.text("#tip").splitlines()[:5] == expected
        planned = next(t.format.name for t in run.plan.tensors if t.name == spec.name)
        assert report.text("#tip").splitlines()[5] == (
            "in the plan" if planned == "int4" else f"in the plan: {planned}"
        )
        page.mouse.move(3, 3)
        assert page.is_hidden("#tip")
        box = page.locator(cell).bounding_box()
        assert box is not None
        page.hover(cell)
        tip = page.locator("#tip").bounding_box()
        assert tip is not None
        assert tip["y"] + tip["height"] <= box["y"] or tip["y"] >= box["y"] + box["height"]
        assert 0 <= tip["x"] <= 1440 - tip["width"]


def test_cells_can_be_reached_by_keyboard_and_by_touch(browser: Browser, reports: dict[str, Path]) -> None:
    names = [s.name for s in small_run().table.model.tensors]
    with opened(browser, reports["en"]) as report:
        page = report.page
        page.focus('svg.map[data-f="3"]')
        seen = []
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
            page.keyboard.press(key)
            seen.append(report.text("#tip").splitlines()[0])
        kinds = [(name.split(".")[2], name.split(".")[-1]) for name in seen]
        assert kinds[-4:] == [("1", "q_proj"), ("1", "k_proj"), ("0", "k_proj"), ("0", "q_proj")] or kinds == [
            ("1", "q_proj"),
            ("2", "q_proj"),
            ("2", "k_proj"),
            ("1", "k_proj"),
            ("1", "q_proj"),
        ]
        assert set(seen) <= set(names)
        page.keyboard.press("Escape")
        assert page.is_hidden("#tip")
    with opened(browser, reports["zh"], 390, "light", has_touch=True) as report:
        page = report.page
        page.tap('svg.map[data-f="3"] [data-t="0"]')
        assert report.text("#tip").startswith(names[0])
        assert "nats/token" in report.text("#tip")
        tip = page.locator("#tip").bounding_box()
        assert tip is not None
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= 390
        page.tap("#loss h2")
        assert page.is_hidden("#tip")


def rows(page: Page) -> list[str]:
    names: list[str] = page.evaluate(
        "[...document.querySelectorAll('#tensor-table tbody tr:not([hidden])')].map((row) => row.cells[0].innerText)"
    )
    return names


def test_the_table_sorts_by_every_column(browser: Browser, reports: dict[str, Path]) -> None:
    run = small_run()
    losses, planned = loss_table(run.table), {t.name: t for t in run.plan.tensors}
    keys: list[Any] = [
        lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
        lambda name: planned[name].format.bits,
        lambda name: planned[name].bytes,
        lambda name: planned[name].loss_nats,
        None,
        *(
            lambda name, f=f: losses.losses[name][f].kl_nats if f in losses.losses[name] else -1.0
            for f in losses.formats
        ),
    ]
    with opened(browser, reports["en"]) as report:
        page = report.page
        assert rows(page) == list(losses.ranked())
        for column, key in enumerate(keys):
            if key is None:
                continue
            button = page.locator(f'#tensor-table th[data-column="{column}"] button')
            head = page.locator(f'#tensor-table th[data-column="{column}"]')
            orders = []
            for _ in range(2):
                button.click()
                orders.append(head.get_attribute("aria-sort"))
                values = [key(name) for name in rows(page)]
                assert values == sorted(values, reverse=orders[-1] == "descending")
            assert set(orders) == {"ascending", "descending"}
            assert page.locator("#tensor-table th[aria-sort]").count() == 1


def test_the_table_filters_by_name_kind_and_format(browser: Browser, reports: dict[str, Path]) -> None:
    run = small_run()
    with opened(browser, reports["en"]) as report:
        page = report.page
        page.fill("#filter-name", "layers.3 proj")
        assert all(".3." in name for name in rows(page))
        assert report.text("#shown") == f"7 of {len(run.plan.tensors)} tensors"
        page.select_option("#filter-kind", "v_proj")
        assert rows(page) == ["model.layers.3.self_attn.v_proj"]
        page.fill("#filter-name", "")
        assert len(rows(page)) == 8
        page.select_option("#filter-kind", "")
        page.select_option("#filter-format", "int6")
        assert set(rows(page)) == {t.name for t in run.plan.tensors if t.format.name == "int6"}
        page.fill("#filter-name", "nothing is called so")
        assert report.text("#shown") == f"0 of {len(run.plan.tensors)} tensors"


def test_the_slider_shows_the_stored_plans(browser: Browser, reports: dict[str, Path]) -> None:
    run, swept = small_run(), swept_run()
    names, planned = [s.name for s in run.table.model.tensors], run.plan.formats
    with opened(browser, reports["en"]) as report:
        page = report.page
        slider = page.locator("#budget")
        own = int(slider.input_value())
        assert swept.points[own].total_bytes <= run.plan.files.total
        slider.focus()
        page.keyboard.press("Home")
        for place, point in enumerate(swept.points):
            assert slider.input_value() == str(place)
            assert report.text('[data-read="size"]') == notation.size(point.total_bytes)
            assert report.text('[data-read="bpw"]') == f"{point.bpw:.2f}"
            assert report.text('[data-read="loss"]') == notation.loss(point.joint_nats)
            fitting = [u.joint_nats for u in swept.uniform if u.total_bytes <= point.total_bytes]
            share = point.joint_nats / min(fitting) if fitting else None
            assert report.text('[data-read="against"]') == notation.ratio(share)
            assert notation.size(point.total_bytes) in (slider.get_attribute("aria-valuetext") or "")
            marks = page.evaluate(
                "Object.fromEntries([...document.querySelectorAll('#stop-map [data-t]')].map((c) => [c.dataset.t, "
                "[c.querySelector('text').textContent, c.classList.contains('changed')]]))"
            )
            formats = {name: point.formats[name] for name in names}
            assert {k: m.rstrip(plan_map.PRIME) for k, (m, _) in marks.items()} == {
                str(i): str(formats[name].bits) for i, name in enumerate(names)
            }
            changed = [name for name in names if formats[name] != planned[name]]
            assert [names[int(k)] for k, (_, outlined) in marks.items() if outlined] == changed
            assert page.locator("#changes li").count() == len(changed)
            counts = [
                sum((formats[n].bits > planned[n].bits, formats[n].bits < planned[n].bits)[w] for n in changed)
                for w in (0, 1)
            ]
            told = report.text("#changes-said")
            assert f"{counts[0]} tensors are wider, {counts[1]} narrower" in told or not changed
            rings = [page.locator("svg.tradeoff .chosen").get_attribute(name) for name in ("cx", "cy")]
            dots = [page.locator(f'svg.tradeoff [data-stop="{place}"] .mark').get_attribute(n) for n in ("cx", "cy")]
            assert rings == dots
            assert page.locator("#stops tr[aria-current]").get_attribute("data-stop") == str(place)
            page.keyboard.press("ArrowRight")
        page.locator('svg.tradeoff [data-stop="1"] .mark').click()
        assert slider.input_value() == "1"
        page.locator('#stops tr[data-stop="3"] button').focus()
        page.keyboard.press("Enter")
        assert slider.input_value() == "3"
        # scrolling hides the tip, and its event comes with the next frame
        page.locator('#stop-map [data-t="0"]').scroll_into_view_if_needed()
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.hover('#stop-map [data-t="0"]')
        page.wait_for_selector("#tip", state="visible")
        assert report.text("#tip").splitlines()[1].startswith(swept.points[3].formats[names[0]].name)
        ticks = page.locator("#ticks span").all_inner_texts()
        assert ticks == [model.name.upper() for model in swept.uniform]


def test_the_button_changes_the_colors(browser: Browser, reports: dict[str, Path]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, reports["en"], 390, "dark") as report:
        page = report.page
        before = page.evaluate(ground)
        assert report.text("#theme") == "Light"
        page.click("#theme")
        assert page.evaluate(ground) != before
        assert page.evaluate(FAINT_TEXTS) == []
        assert report.text("#theme") == "Dark"
        page.click("#theme")
        assert page.evaluate(ground) == before
    with opened(browser, reports["en"], 390, "light") as report:
        report.page.click("#theme")
        assert report.page.evaluate(ground) == before
        assert report.page.evaluate(FAINT_TEXTS) == []


def test_everything_essential_is_there_without_scripts(browser: Browser, reports: dict[str, Path]) -> None:
    run, swept = small_run(), swept_run()
    with opened(browser, reports["en"], 390, "light", java_script_enabled=False) as report:
        page = report.page
        for control in ("#theme", ".slider", "#stop", ".toolbar", "#tip", "#loss .lead span"):
            assert page.is_hidden(control)
        assert page.locator("#tensor-table tbody tr").count() == len(run.plan.tensors)
        assert page.locator("#stops tbody tr").count() == len(swept.points) + len(swept.uniform)
        assert all(notation.size(point.total_bytes) in report.text("#stops") for point in swept.points)
        title = page.locator('svg.map[data-f="0"] [data-t="0"] title').text_content() or ""
        assert title.startswith(run.plan.tensors[0].name)
        assert "nats/token" in title
        assert report.text(".verdict .sentence") in page.content()


PAPER = 695
"""CSS pixels between the margins of A4."""

# sections whose content runs over what follows them
OVERRUNS = """() => [...document.querySelectorAll("section")].filter((section) =>
  [...section.querySelectorAll("table, svg, p")].some((part) => part.checkVisibility()
    && part.getBoundingClientRect().bottom > section.getBoundingClientRect().bottom + 1))
  .map((section) => section.id)"""


@pytest.mark.parametrize("name", ["zh", "wide"])
def test_paper_has_pages_without_controls(browser: Browser, reports: dict[str, Path], name: str) -> None:
    with opened(browser, reports[name], PAPER, "dark") as report:
        page = report.page
        page.click("#theme")
        page.click("#theme")
        pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf()))
        assert 4 <= pages <= 16
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        for control in ("#theme", ".slider", ".toolbar", "nav"):
            assert page.is_hidden(control)
        shown = "[...document.querySelectorAll('#tensor-table tbody tr')].filter((r) => r.checkVisibility()).length"
        assert page.evaluate(shown) == 12
        assert page.evaluate(FAINT_TEXTS) == []
        assert page.evaluate(OVERRUNS) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= PAPER


def test_pages_without_a_frontier_or_without_details(browser: Browser, reports: dict[str, Path]) -> None:
    with opened(browser, reports["bare"]) as report:
        assert report.page.locator("#budgets").count() == 0
        report.page.hover('svg.map[data-f="0"] [data-t="0"]')
        assert "nats/token" in report.text("#tip")
    with opened(browser, reports["brief"], 390) as report:
        page = report.page
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.hover('svg.map[data-f="0"] [data-t="0"]')
        assert report.text("#tip").startswith("model.layers.0.self_attn.q_proj")
        assert page.is_hidden("#stop .detailed")
        page.focus("#budget")
        page.keyboard.press("End")
        assert report.text('[data-read="size"]') == notation.size(swept_run().points[-1].total_bytes)
        assert page.locator("#tensor-table tbody tr").count() == 100 // 4
