"""All tables of this folder for one model: ``python -m reports.targets.run MODEL_FOLDER --work FOLDER``.

Runs, one after the other, `reports.targets.speed`, `parity` (which analyzes the model), `arithmetic` and `kv`; what
they print goes into FOLDER, a Markdown file each, and speeds as JSON. Takes hours for 135 million weights, most of them
under emulation. Options after ``--`` go to ``qplan analyze``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="long text that caches are measured on")
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    given, analyze = parser.parse_args(words[:own]), words[own + 1 :]
    given.work.mkdir(parents=True, exist_ok=True)
    run = given.work / "parity" / "run"
    model = str(given.model)
    parts = {
        "speed": [model, "--work", str(given.work / "speed")],
        "parity": [model, "--work", str(given.work / "parity"), "--", *analyze],
        "arithmetic": [str(run), "--work", str(given.work / "arithmetic")],
        "kv": [model, "--text", str(given.text), "--work", str(given.work / "kv")],
    }
    for name, arguments in parts.items():
        with (given.work / f"{name}.md").open("w", encoding="utf-8") as page:
            subprocess.run([sys.executable, "-m", f"reports.targets.{name}", *arguments], check=True, stdout=page)


if __name__ == "__main__":
    main()
