"""Execute the notebooks and write copies with pictures for the documentation, ``docs/notebooks/``.

    python notebooks/render.py [qplan-runs/stdlib-3m]

The notebooks themselves stay without outputs. Tables become Markdown, figures become PNG files beside the copies.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = ROOT / "docs" / "notebooks"
NOTEBOOKS = tuple(sorted(HERE.glob("*.ipynb")))
TIMEOUT_S = 600
RUN = "QPLAN_RUN"
"""Environment variable that the notebooks read the run's folder from."""

# a page wants tables that its theme draws, not pandas' HTML
_PROLOGUE = """
import pandas as pd
from IPython import get_ipython
from qplan.explore.html import frame_markdown
get_ipython().display_formatter.formatters["text/markdown"].for_type(pd.DataFrame, frame_markdown)
"""


def execute(path: Path, run: Path | None = None, *, prologue: str = "") -> NotebookNode:
    """Run a notebook from top to bottom in a kernel of its own, in its own folder.

    Args:
        path: the notebook; not changed.
        run: the run that it reads; None for what it finds.
        prologue: code to run first, in a cell that does not come back.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    if prologue:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(prologue))
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    if run is not None:
        environment[RUN] = str(run.resolve())
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        coalesce_streams=True,
        extra_arguments=["--log-level=40"],  # a kernel warns of its sockets, which are local
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=environment)
    if prologue:
        del notebook.cells[0]
    return notebook


def markdown(notebook: NotebookNode, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook with outputs as Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(linked(cell.source))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}-{len(pictures) + 1:02d}.png"
                pictures[picture] = base64.b64decode(data["image/png"])
                parts.append(f"![{alternative(parts)}]({picture})")
            elif "text/markdown" in data:
                parts.append(data["text/markdown"])
            else:
                parts.append("```text\n" + (output.get("text") or data["text/plain"]).rstrip() + "\n```")
    return "\n\n".join(parts) + "\n", pictures


def linked(source: str) -> str:
    """Prose whose links to other notebooks lead to their copies."""
    return re.sub(r"\]\((\d\d-[\w-]+)\.ipynb\)", r"](\1.md)", source)


def alternative(parts: list[str]) -> str:
    """What a picture is of, for those who don't see it: the last heading and the call that drew it."""
    heading = next((line.lstrip("# ") for part in reversed(parts) for line in part.splitlines() if line[:1] == "#"), "")
    call = parts[-1].strip("`").splitlines()[-1] if parts[-1].startswith("```python") else ""
    return f"{heading}: {call}".replace("[", "(").replace("]", ")").rstrip(": ")


def render(run: Path | None) -> None:
    """Execute all notebooks and write their copies."""
    pages = {path.stem: markdown(execute(path, run, prologue=_PROLOGUE), path.stem) for path in NOTEBOOKS}
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    for name, (text, pictures) in pages.items():
        (OUT / f"{name}.md").write_text(text, encoding="utf-8")
        for picture, content in pictures.items():
            (OUT / picture).write_bytes(content)
        size = sum(map(len, pictures.values()))
        sys.stdout.write(f"{OUT.relative_to(ROOT) / name}.md, {len(pictures)} pictures, {size / 1e3:,.0f} kB\n")


if __name__ == "__main__":
    render(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
