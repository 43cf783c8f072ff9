"""Writes ``README.md`` from ``results.json``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent


def main() -> None:
    """Write the page."""
    results: dict[str, Any] = json.loads((HOME / "results.json").read_text(encoding="utf-8"))
    lines = ["# Safe on the engine", ""]
    lines += [
        f"Written by `python -m reports.engine.run` with MNN {results['versions']['MNN']}, from `results.json`.",
        "",
    ]
    lines += [*_faults(results.get("faults", [])), *_restarts(results.get("restarts"))]
    lines += [*_good(results.get("good", [])), *_speed(results.get("speed"))]
    (HOME / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _faults(faults: list[dict[str, Any]]) -> list[str]:
    if not faults:
        return []
    native = Counter((row["severity"], row["native"]) for row in faults)
    named = sum(row["named"] for row in faults)
    shown = ", ".join(
        f"{count} {severity}{'s' * (count > 1)} {outcome}" for (severity, outcome), count in sorted(native.items())
    )
    lines = [
        f"## {len(faults)} broken folders",
        "",
        f"`qplan check` identifies the fault in {named} of {len(faults)}.",
        f"What the engine does with them when nothing checks them first: {shown}.",
        "*wrong* is garbage without a message: logits more than 1 % off. `qplan.Engine` refuses every folder with an",
        "error before the engine loads it; without its check (last column) a crash is a `ToolError`.",
        "",
        "| fault | finding | | engine, unchecked | `Engine(check=False)` |",
        "|---|---|---|---|---|",
    ]
    for row in faults:
        off = "" if row["error"] is None or row["native"] == "ok" else f", {row['error']:.1e} off"
        told = f": {row['detail'][:90]}" if row["detail"] else ""
        lines.append(
            f"| {row['fault']} | `{row['code']}` | {row['severity']} | {row['native']}{off}{told} | "
            f"{row['unchecked Engine']} |"
        )
    return [*lines, ""]


def _restarts(restarts: dict[str, Any] | None) -> list[str]:
    if restarts is None:
        return []
    first, last = restarts["trace"][0], restarts["trace"][-1]
    memory = f"Resident memory {first['rss_kb']:,} kB before, {last['rss_kb']:,} kB after"
    files = f"open files {first['open_files']} and {last['open_files']}"
    told = f"{memory}; {files}. The logits are bit-identical after each restart."
    return [f"## {restarts['count']:,} restarts", "", told, ""]


def _good(good: list[dict[str, Any]]) -> list[str]:
    exported = [row for row in good if row["exports"]]
    if not exported:
        return []
    alarmed = [row for row in exported if row["findings"]]
    names = ", ".join(row["architecture"] for row in exported)
    return [
        "## False alarms",
        "",
        f"{len(alarmed)} on int8 exports of {len(exported)} architectures, read in full: {names}.",
        "",
    ]


def _speed(speed: dict[str, Any] | None) -> list[str]:
    if speed is None:
        return []
    size = f"a graph of {speed['layers']} layers and {speed['ops']:,} ops, as many as a 7B model has"
    return ["## Time of a check", "", f"{speed['seconds']:.2f} s for {size}.", ""]


if __name__ == "__main__":
    main()
