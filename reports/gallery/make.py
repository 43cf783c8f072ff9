"""Screenshots of a report, after ``qplan demo --budget int4``: ``make.py qplan-runs/stdlib-3m int4``.

Needs Chromium or Chrome on the PATH, and a Chinese font (``apt install chromium fonts-noto-cjk``).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from qplan.jobs.report import run_report
from qplan.report.words import Language
from qplan.run.folder import RunFolder

HERE = Path(__file__).parent
TALLEST = 1900
"""Most CSS pixels in height of a picture."""


def reports(run: Path, budget: str, folder: Path) -> dict[str, Path]:
    """The report in every language, made in a copy of the files that it needs from the run."""
    home = folder / run.name
    shutil.copytree(run / budget, home / budget, ignore=shutil.ignore_patterns("model", "report.*"))
    for name in ("sensitivity.parquet", "frontier", f"{budget}/report.json"):
        source = run / name
        if source.is_dir():
            shutil.copytree(source, home / name)
        elif source.is_file():
            shutil.copy(source, home / name)
    pages = {}
    for language in Language:
        made = run_report(budget, RunFolder(home), language, print)
        pages[language.value] = Path(shutil.move(made.page, folder / f"{language}.html"))
    return pages


def shoot(browser: Browser, page: Path, name: str, *, width: int, scheme: str, act: Callable[[Page], None]) -> None:
    """One picture: open the page, do something to it, save what is then marked with ``data-shot``, in 256 colors."""
    scale = 2 if width < 500 else 1
    # taller than any picture: a full-page screenshot would resize the window, which closes tooltips
    size = {"width": width, "height": 9000 if width > 500 else 16000}
    context = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=scale)  # type: ignore[arg-type]
    opened = context.new_page()
    opened.goto(page.as_uri())
    act(opened)
    path = HERE / f"{name}.png"
    opened.screenshot(path=path, clip=opened.evaluate("window.shot"))
    context.close()
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def beginning(page: Page) -> None:
    """The verdict, the plan and the budgets with the slider moved."""
    page.focus("#budget")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.evaluate("document.activeElement.blur()")
    page.evaluate(
        f"""{{ const box = document.querySelector("#budgets").getBoundingClientRect();
        window.shot = {{ x: 0, y: 0, width: innerWidth, height: Math.min({TALLEST}, box.bottom + scrollY + 24) }}; }}"""
    )


def losses(page: Page) -> None:
    """The heat maps with a tooltip."""
    cell = page.locator('svg.map[data-map="loss"] [data-t="20"]').nth(7)
    cell.scroll_into_view_if_needed()
    cell.hover()
    page.evaluate(
        """{ const box = document.querySelector("#loss").getBoundingClientRect();
        window.shot = { x: 0, y: box.top + scrollY, width: innerWidth, height: Math.min(box.height, 900) + 16 }; }"""
    )


def table(page: Page) -> None:
    """The table of tensors, filtered."""
    page.fill("#filter-name", "down_proj")
    page.evaluate(
        """{ const box = document.querySelector("#tensors").getBoundingClientRect();
        window.shot = { x: 0, y: box.top + scrollY, width: innerWidth, height: box.height + 16 }; }"""
    )


def samples(page: Page) -> None:
    """What the models write."""
    page.evaluate(
        """{ const box = document.querySelector("#samples").getBoundingClientRect();
        window.shot = { x: 0, y: box.top + scrollY, width: innerWidth, height: Math.min(box.height, 1100) + 16 }; }"""
    )


def main() -> None:
    """Make all pictures."""
    run, budget = Path(sys.argv[1]), sys.argv[2]
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = reports(run, budget, Path(folder))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for language, page in pages.items():
            for scheme in ("light", "dark"):
                parts = [language if language != "en" else "", scheme if scheme != "light" else ""]
                end = "".join(f"-{part}" for part in parts if part)
                shoot(browser, page, f"report-{budget}{end}", width=1440, scheme=scheme, act=beginning)
                shoot(browser, page, f"phone-{budget}{end}", width=390, scheme=scheme, act=beginning)
        shoot(browser, pages["en"], "losses", width=1440, scheme="light", act=losses)
        shoot(browser, pages["zh"], "losses-zh-dark", width=1440, scheme="dark", act=losses)
        shoot(browser, pages["en"], "table", width=1440, scheme="light", act=table)
        shoot(browser, pages["zh"], "table-zh-phone", width=390, scheme="dark", act=table)
        shoot(browser, pages["en"], "samples", width=1440, scheme="light", act=samples)
        shoot(browser, pages["zh"], "samples-zh-phone", width=390, scheme="light", act=samples)
        browser.close()


if __name__ == "__main__":
    main()
