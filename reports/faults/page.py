"""Writes ``README.md`` from ``results.json``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent
TIDYING = "removing what the kill before left"
"""What a command does before its first stage."""

Row = dict[str, Any]


def main(path: Path = HOME / "results.json") -> None:
    """Write the page beside the results."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "# Faults survived",
        "",
        f"Written by `python -m reports.faults.run` with MNN {results['versions']['MNN']}, from `results.json`. The",
        "model is the embedded one with its first layer alone; quick settings (`bench.py`) end in seconds.",
        "",
    ]
    lines += [line for remark in results.get("remarks", []) for line in (remark, "")]
    lines += _kills(results.get("kills", []))
    lines += _streamed(results.get("streamed", []))
    lines += _disks(results.get("disks", []))
    lines += _flips(results.get("flips", []))
    lines += _folders(results.get("folders", []))
    lines += _interrupts(results.get("interrupts", []))
    path.with_name("README.md").write_text("\n".join(lines), encoding="utf-8")


def _kills(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    hits = [row for row in rows if row["signal"]]
    ends = [row for row in rows if not row["signal"] and "differs" in row]
    missed = [row for row in rows if not row["signal"] and "differs" not in row]
    wrong = sum(row["code"] != row["expected_code"] for row in rows)
    alive = sum(len(row["alive"]) for row in rows)
    left = sum(bool(row["leftovers"]) for row in rows if row["signal"] != "SIGKILL")
    lost = sum(row.get("measurements_lost", 0) for row in rows)
    same = sum(not row["differs"] for row in ends)
    lines = [
        f"## {len(hits)} signals",
        "",
        "Every command is hit at its first stage, started again, hit at the next one, and so on; after the last hit",
        f"it ends in peace. {wrong} wrong exit codes, {alive} processes alive two seconds later, {lost} measurements",
        "lost.",
        f"{left} commands left unfinished files behind; SIGKILL leaves some, which the next command removes.",
        f"Of {len(ends)} commands that were hit at all stages and then ended, {same} left table, plan and model with",
        "the bytes of an undisturbed one, apart from the random identifier that MNN's converter writes into a graph.",
        "A dash is a signal that was not tried at that stage: `--quick` gives each stage one.",
        *(f"Others: {row['command']} left another {', '.join(row['differs'])}." for row in ends if row["differs"]),
        "",
        "| command | stage | codes by SIGKILL, SIGTERM, SIGINT, SIGHUP | alive | left over | the next did not repeat |",
        "|---|---|---|---|---|---|",
    ]
    stages = list(dict.fromkeys((row["command"], row["stage"]) for row in hits))
    for command, stage in stages:
        of = [row for row in hits if (row["command"], row["stage"]) == (command, stage)]
        by = {row["signal"]: row for row in of}
        codes = ", ".join(str(by[name]["code"]) if name in by else "-" for name in _SIGNALS)
        killed = len(by["SIGKILL"]["leftovers"]) if "SIGKILL" in by else 0
        others = sum(len(row["leftovers"]) for name, row in by.items() if name != "SIGKILL")
        kept = Counter[str]()
        for row in of:
            for kind, count in row.get("kept", {}).items():
                kept[kind] = max(kept[kind], count)
        shown = ", ".join(f"{count} {kind}" for kind, count in kept.items()) or "nothing was finished"
        alive_here = sum(len(row["alive"]) for row in of)
        left_over = f"{killed} after SIGKILL, {others} after others" if killed or others else "0"
        lines.append(f"| {command} | {stage} | {codes} | {alive_here} | {left_over} | {shown} |")
    if missed:
        told = ", ".join(sorted({f"{row['command']}: {row['stage']}" for row in missed}))
        lines += ["", f"Over before the signal came, so not counted: {len(missed)} ({told})."]
    return [*lines, ""]


def _streamed(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    hits, ends = [row for row in rows if row["signal"]], [row for row in rows if not row["signal"]]
    wrong = sum(row["code"] != row["expected_code"] for row in rows)
    left = sum(bool(row["leftovers"]) for row in rows if row["signal"] != "SIGKILL" and row["stage"] != TIDYING)
    same = sum(not row["code"] and not row["differs"] for row in ends)
    lines = [
        f"## {len(hits)} signals while the model stays on the disk",
        "",
        "Tiny models of two or three layers (`streamed.py`); three signals in four are SIGKILL, the fourth SIGTERM.",
        "`analyze` is hit before every kind of change to its run folder: a file that is written and has not got its",
        "name, one that just got it, and each removal. Of the kinds of `emit`, which are also child processes at work,",
        "a few of every stage are drawn. Each stage is hit in its midst as well. Each command goes on from what the",
        "hit before it left.",
        f"{wrong} wrong exit codes; {left} commands left unfinished files behind, SIGKILL apart.",
        f"Of {len(ends)} commands that were hit as the table says and then ended, {same} left the bytes of an",
        "undisturbed one: of everything in the run folder after `analyze`, of table, rounded tensors, plan and",
        "model after `emit`.",
        *(f"Others: {row['command']} left another {', '.join(row['differs'])}." for row in ends if row["differs"]),
        "",
        "| command | model | effort | stage | hits | codes | in the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ends:
        own = [hit for hit in hits if series_of(hit) == series_of(row)]
        for stage in dict.fromkeys(hit["stage"] for hit in own):
            of = [hit for hit in own if hit["stage"] == stage]
            codes = ", ".join(f"{count} of {code}" for code, count in Counter(hit["code"] for hit in of).items())
            lines.append(f"| {' | '.join(series_of(row))} | {stage} | {len(of)} | {codes} | |")
        verdict = "the same bytes" if not row["differs"] else "OTHER BYTES"
        lines.append(f"| {' | '.join(series_of(row))} | to the end | {len(own)} | {row['code']} | {verdict} |")
    return [*lines, ""]


def series_of(row: Row) -> tuple[str, str, str]:
    """The command, model and effort that a streamed row is about."""
    return row["command"], row["model"], row["effort"]


_SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")


def _disks(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    skipped = [row["skipped"] for row in rows if "skipped" in row]
    rows = [row for row in rows if "skipped" not in row]
    failed = [row for row in rows if row["code"]]
    good = sum(row["names_disk"] and row["names_remedy"] and not row["traceback"] for row in failed)
    half = sum(bool(row["half_written"]) for row in rows)
    left = sum(bool(row["leftovers"]) for row in rows)
    again = [row for row in rows if "again" in row]
    works = sum(row["again"] == 0 and not row["differs"] for row in again)
    lines = [
        f"## {len(rows)} full disks",
        "",
        f"{len(failed)} commands did not fit; the message of {good} names disk and remedy. {half} left something half",
        f"written under a final name, {left} left temporary files. After room was made, the same command ended well,",
        f"with the results of an undisturbed one, in {works} of {len(again)}.",
        "",
        *(f"Skipped: {text}." for text in skipped),
        "| command | full | free | exit code | names disk, remedy | half written | left over | then, with room |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*lines, *map(_disk, rows), ""]


def _disk(row: Row) -> str:
    named = "-" if not row["code"] else ", ".join("yes" if row[key] else "no" for key in ("names_disk", "names_remedy"))
    then = "-" if "again" not in row else f"{row['again']}, {'other' if row['differs'] else 'the same'} results"
    counts = f"{len(row['half_written'])} | {len(row['leftovers'])}"
    return f"| {row['command']} | {row['place']} | {row['free']} | {row['code']} | {named} | {counts} | {then} |"


def _flips(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    total = Counter[str]()
    for row in rows:
        total.update(row["outcomes"])
    shown = ", ".join(f"{count:,} {name}" for name, count in sorted(total.items()))
    lines = [
        f"## {sum(total.values()):,} damaged files",
        "",
        "One bit, a cut, 40 zeroed bytes, a digit or 8 random bytes, in turn, in every kind of file of a run folder",
        f"and in every file of a built model: {shown}; {total['SILENT']} silent.",
        "*Made again*: told, and made again from its inputs. *Resumed*: a cut journal is what a killed command leaves.",
        "*Harmless*: the answer is the same to the bit, as where a",
        "space was damaged. *Error* and *warning* are findings of `qplan check`. *Taken*: people may change",
        "`config.json` of a built model, and the engine takes the changed value.",
        "",
        "| file | tries | outcomes |",
        "|---|---|---|",
    ]
    for row in rows:
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(row["outcomes"].items()))
        lines.append(f"| {row['of']}: `{row['file']}` | {row['tries']} | {outcomes} |")
    return [*lines, ""]


def _folders(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    slowest = max((row[how]["seconds"] or 0 for row in rows for how in ("check", "Engine") if how in row), default=0)
    most = max((row[how]["kb"] or 0 for row in rows for how in ("check", "Engine") if how in row), default=0)
    lines = [
        f"## {len(rows) - 1} hostile folders",
        "",
        f"The slowest answer took {slowest:.2f} s, the most memory on top of the imports was {most / 1024:.0f} MB.",
        "",
        "| folder | `qplan check` | s | MB | `qplan.Engine` | s | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {row['folder']} | {_looked(row.get('check'))} | {_looked(row.get('Engine'))} |" for row in rows]
    return [*lines, ""]


def _looked(found: Row | None) -> str:
    if found is None:
        return "- | - | -"
    said = ", ".join(f"`{text}`" if text else "-" for text in found["said"]) or "nothing"
    seconds = "-" if found["seconds"] is None else f"{found['seconds']:.2f}"
    return f"{said} | {seconds} | {'-' if found['kb'] is None else round(found['kb'] / 1024)}"


def _interrupts(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Interrupted requests",
        "",
        "*Hit*: the fault came while the request ran, and raised. *Wrong*: the next answer was not its own, to the",
        "bit, or a process was left.",
        "",
        "| case | tries | hit | wrong | processes left |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        tries = row.get("tries", row.get("failed"))
        counts = f"{row.get('hit', '-')} | {row.get('wrong', '-')} | {len(row['alive'])}"
        lines.append(f"| {row['case']} | {tries} | {counts} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
