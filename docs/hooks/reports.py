"""Takes the reports and their pictures into the site, where pages link to them as in the repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add ``reports/**/*.md`` and the pictures of the gallery and of the comparisons with MNN's and llama.cpp's own."""
    root = Path(config.config_file_path).parent
    pictures = (path for folder in ("gallery", "gguf", "smollm2") for path in root.glob(f"reports/{folder}/*.png"))
    for path in sorted((*root.glob("reports/**/*.md"), *pictures)):
        files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - by name
    """Turn links out of ``docs/`` into links to what `on_files` added."""
    source = page.file.src_uri
    inside = source if source.startswith("reports/") else f"docs/{source}"

    def resolve(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(inside), match[2]))
        if not target.startswith("reports/") or files.get_file_from_path(target) is None:
            return match[0]
        return match[1] + posixpath.relpath(target, posixpath.dirname(source) or ".")

    return _LINK.sub(resolve, markdown)
