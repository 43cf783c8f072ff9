"""Faults survived: signals, full disks, flipped bits, hostile folders, interrupted requests.

    python -m reports.faults.run [--quick] [--only kills|streamed|disks|...] [--work FOLDER]

Writes ``results.json`` beside itself; ``README.md`` says what it means. Takes about an hour on two cores, ``--quick``
ten minutes. Disks are memory disks, which only root can mount.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from qplan.artifact import versions
from reports.faults import page
from reports.faults.disks import disks
from reports.faults.flips import flips
from reports.faults.folders import folders
from reports.faults.interrupts import interrupts
from reports.faults.kills import kills
from reports.faults.page import series_of
from reports.faults.processes import adopt_orphans
from reports.faults.streamed import SERIES, streamed

HOME = Path(__file__).parent
PARTS = {
    "streamed": streamed,  # first: it forks this process, which must not have computed on several threads
    "flips": flips,
    "folders": folders,
    "interrupts": interrupts,
    "kills": kills,
    "disks": disks,
}


def main() -> None:
    """Run the parts that were asked for and write the results, each as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of every part")
    parser.add_argument("--only", choices=tuple(PARTS), action="append")
    parser.add_argument(
        "--series", choices=[" ".join(one) for one in SERIES], action="append", help="of the streamed ones; others stay"
    )
    parser.add_argument("--work", type=Path, help="folder for runs; kept")
    parser.add_argument("--results", type=Path, default=HOME / "results.json")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGHUP):  # a shell may have had them ignored, which children would inherit
        signal.signal(number, signal.SIG_DFL)
    adopt_orphans()
    path: Path = arguments.results
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results["versions"] = versions()
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        for part in arguments.only or PARTS:
            run, kept = PARTS[part], []
            if part == "streamed" and arguments.series:
                series = [one for one in SERIES if " ".join(one) in arguments.series]
                run = partial(streamed, series=series)
                kept = [row for row in results.get(part, []) if series_of(row) not in series]
            results[part] = kept

            def done(row: dict[str, Any], rows: list[dict[str, Any]] = results[part]) -> None:
                print(row, flush=True)
                rows.append(row)
                path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

            run(work, done, quick=arguments.quick)
    page.main(path)


if __name__ == "__main__":
    main()
