"""The documentation builds without a warning, its links lead somewhere, and it fetches nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.config import load_config

from qplan.card import ModelCard
from qplan.compat.arm_table import ArmTable
from qplan.compat.table import CompatTable
from qplan.cost.file_bytes import bits_per_weight, estimate_fixed, file_bytes
from qplan.cost.target import find_target
from qplan.tensors import Role, TensorSpec
from qplan.uniform import uniform_formats
from tests.support.documented import DOCS, ROOT

SOURCES = [*(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")), *sorted(DOCS.rglob("*.md"))]
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


class Page(HTMLParser):
    """Anchors of a page, what it links to and what a browser would load for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(found["href"])
        elif "src" in found:
            self.loaded.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page of the site as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}


def test_every_link_and_anchor_of_the_site_resolves(site: dict[Path, Page]) -> None:
    assert len(site) > 25
    broken = []
    for path, page in site.items():
        if path.name == "404.html":  # its links are from the root of a server
            continue
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = site[target].anchors if target in site else set()
            if not target.is_file() or (parts.fragment and parts.fragment not in anchors):
                broken.append((path.name, link))
    assert not broken


def test_no_page_loads_anything_from_elsewhere(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        assert not [url for url in page.loaded if urlsplit(url).scheme not in ("", "data") or url.startswith("//")], (
            path
        )
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"fonts\.g|unpkg|jsdelivr|cdnjs", text)
    for sheet in next(iter(site)).parent.rglob("*.css"):
        assert not re.search(r"@import|url\((?!data:|\.|#|\")", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_the_sources_lead_to_files_of_the_repository(path: Path) -> None:
    text = _CODE.sub("", path.read_text(encoding="utf-8"))
    for link in _LINK.findall(text):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), link
        elif parts.path:
            assert (path.parent / unquote(parts.path)).exists(), link
            if parts.path.endswith(".md") and parts.fragment:
                headings = re.findall(
                    r"^#+ (.*)$", (path.parent / parts.path).read_text(encoding="utf-8"), re.MULTILINE
                )
                assert parts.fragment in {slug(heading) for heading in headings}, link


def slug(heading: str) -> str:
    """As GitHub and MkDocs make an anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_page_names_this_machine_or_a_registry(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(work|root|home|Users|tmp|var|opt|mnt)/", text)
    hosts = r"pythonhosted|pypi\.org|--index-url|registry\.(?!py\b)|mirrors?\.|localhost|127\.0\.0\.1"
    assert not re.search(hosts, text)


def test_every_page_is_in_the_navigation_once() -> None:
    def pages(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        assert isinstance(node, dict | list)
        parts = node.values() if isinstance(node, dict) else node
        return [page for part in parts for page in pages(part)]

    listed = pages(load_config(str(ROOT / "mkdocs.yml"))["nav"])
    assert len(listed) == len(set(listed))
    here = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    reports = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("reports/**/*.md")}
    assert set(listed) == here | reports


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_compatibility_page_is_that_of_the_data() -> None:
    module = hook("compatibility")
    page = module.PAGE.read_text(encoding="utf-8")
    assert page == module.rewritten(page, CompatTable.read(), ArmTable.read()), "run python docs/hooks/compatibility.py"
    assert page.count("**crash**") > 10


def qwen25_half_billion() -> ModelCard:
    """Qwen2.5-0.5B-Instruct from its configuration."""
    hidden, layers, kv, inner, vocabulary = 896, 24, 128, 4864, 151_936
    shapes = {
        "self_attn.q_proj": (hidden, hidden, True),
        "self_attn.k_proj": (kv, hidden, True),
        "self_attn.v_proj": (kv, hidden, True),
        "self_attn.o_proj": (hidden, hidden, False),
        "mlp.gate_proj": (inner, hidden, False),
        "mlp.up_proj": (inner, hidden, False),
        "mlp.down_proj": (hidden, inner, False),
    }
    specs = [
        TensorSpec(f"model.layers.{layer}.{path}", f"{layer}/{path}", layer, path.split(".")[1], Role.MLP, *shape)
        for layer in range(layers)
        for path, shape in shapes.items()
    ]
    specs.append(
        TensorSpec("lm_head", "lm_head", None, "lm_head", Role.HEAD, vocabulary, hidden, bias=False, tied=True)
    )
    norms = (2 * layers + 1) * hidden
    parameters = sum(spec.weights + spec.out_features * spec.bias for spec in specs) + norms
    context = 32_768
    return ModelCard("Qwen", "0" * 64, "Qwen2", "qwen2", parameters, vocabulary, context, tuple(specs), 0, norms)


def test_the_tutorials_figures_are_those_of_the_predictors() -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    card, target = qwen25_half_billion(), find_target("cpu-x86")
    assert f"{card.parameters:,} parameters" in text
    assert f"{len(card.tensors)} tensors" in text
    for bits in (16, 8, 6, 4, 3, 2):
        formats = uniform_formats(card, bits)
        files = file_bytes(card, formats, estimate_fixed(card))
        ram = sum(target.ram_bytes(spec, formats[spec.name]) for spec in card.tensors)
        name = "fp16" if bits == 16 else "int8" if bits == 8 else f"int{bits}, head int8"
        row = f"| {name} | {files.total / 1e6:.1f} MB | {bits_per_weight(files, card):.2f} | {ram / 1e6:.1f} MB |"
        assert row in text
    head = card.tensors[-1]
    assert f"{head.weights / sum(spec.weights for spec in card.tensors):.0%}".replace("%", " %") in text
