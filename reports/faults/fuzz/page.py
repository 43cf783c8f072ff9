"""``fuzz.md``: the counts as a table."""

from __future__ import annotations

from typing import Any

_WHAT = {
    "options": "command lines: every command and option with values at the edges",
    "artifacts": "runs with damaged artifacts, read by every command that reads a run",
    "configs": "settings of Hugging Face and MNN models, chat templates",
    "folders": "model folders with damaged files, or with what is no file",
    "texts": "calibration texts",
}


def page(results: dict[str, Any]) -> str:
    """The page of some results."""
    codes = sorted({code for found in results["codes"].values() for code in found}, key=int)
    lines = [
        "# Inputs that nobody foresaw",
        "",
        f"{results['cases']:,} cases drawn by hypothesis (seeds from {results['seed']}) through the entry point of the",
        f"command line; `python -m reports.faults.fuzz --cases {results['cases']}` draws the same again. It took",
        f"{results['seconds'] / 60:.0f} minutes, the slowest case {results['slowest_s']:.1f} s.",
        "",
        "A case passes if it ends in time with a documented exit code other than 1, with a message if that is not 0,",
        "without a traceback or a native crash, and leaves nothing half written; a damaged artifact must not lead to",
        "another answer than the whole one without a word; `plan.json`, which people may edit, is not held to that.",
        "",
        "| kind | what | cases | " + " | ".join(f"exit {code}" for code in codes) + " |",
        "|---|---|" + "---:|" * (1 + len(codes)),
    ]
    for kind, found in results["codes"].items():
        counts = " | ".join(f"{found.get(code, 0):,}" for code in codes)
        lines.append(f"| {kind} | {_WHAT.get(kind, '')} | {sum(found.values()):,} | {counts} |")
    lines += ["", f"Cases that failed: {len(results['faults'])}.", ""]
    lines += [f"- seed {row['seed']}: `{row['case']}`: {'; '.join(row['faults'])}" for row in results["faults"]]
    return "\n".join(lines).rstrip() + "\n"
