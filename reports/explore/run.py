"""Measures what exploring a run costs: imports in fresh processes, then opening, solving and drawing.

python -m reports.explore.run qplan-runs/stdlib-3m
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from qplan.artifact import versions

HOME = Path(__file__).parent
TIMES = 9

IMPORTS = {
    "pandas and matplotlib": "import pandas, matplotlib.figure",
    "pandas": "import pandas",
    "qplan.explore": "import qplan.explore",
    "qplan.explore and matplotlib": "import qplan.explore, matplotlib.figure",
    "qplan.explore and the solver": "import qplan.explore, qplan.explore.solving",
    "torch": "import torch",
}

STEPS = """
import json, sys, time
found, start = {}, time.process_time()
import qplan
def lap(name):
    global start
    found[name] = time.process_time() - start
    start = time.process_time()
run = qplan.open_run(sys.argv[1]); lap("import qplan, open the run")
run.sensitivity; lap("run.sensitivity")
run.plan("int8"); lap("run.plan('int8'), with the solver's import")
run.solve("int4"); lap("run.solve('int4')")
run.solve("int4", pins={"*.down_proj": "int6"}); lap("run.solve('int4', pins=...)")
run.plot_losses(); lap("run.plot_losses(), with matplotlib's import")
run.plot_ranking("int4"); lap("run.plot_ranking('int4')")
run.frontier; lap("run.frontier")
loaded = {name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "MNN"}
print(json.dumps({"seconds": found, "loaded": sorted(loaded)}))
"""


def seconds_of(statement: str) -> float:
    """CPU seconds of a statement in a fresh interpreter, without the interpreter's own start."""
    code = f"import time; start = time.process_time()\n{statement}\nprint(time.process_time() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main(run: Path) -> None:
    """Measure everything in interleaved rounds, so that a change of load affects all alike; take medians."""
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(TIMES):
        for name, statement in IMPORTS.items():
            times[name].append(seconds_of(statement))
    imports = {name: statistics.median(found) for name, found in times.items()}
    command = [sys.executable, "-c", STEPS, str(run)]
    steps: list[dict[str, Any]] = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)
    ]
    seconds = {name: statistics.median(step["seconds"][name] for step in steps) for name in steps[0]["seconds"]}
    results = {
        "python": platform.python_version(),
        "versions": versions(),
        "imports_s": imports,
        "against_pandas_and_matplotlib": imports["qplan.explore and matplotlib"] / imports["pandas and matplotlib"],
        "steps_s": seconds,
        "engine_or_torch_loaded": steps[0]["loaded"],
    }
    (HOME / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (HOME / "README.md").write_text(page(results), encoding="utf-8")


def page(results: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# What exploring a run costs",
        "",
        "Written by `python -m reports.explore.run qplan-runs/stdlib-3m`, from `results.json`. CPU seconds, medians of",
        f"{TIMES} fresh processes, with files in the page cache; Python {results['python']}.",
        "",
        "| import | CPU seconds |",
        "|---|---:|",
        *(f"| {name} | {value:.2f} |" for name, value in results["imports_s"].items()),
        "",
        f"With matplotlib, which comes with the first figure: {results['against_pandas_and_matplotlib']:.2f} times",
        "importing pandas and matplotlib alone.",
        "",
        "| step, on the embedded model's run | CPU seconds |",
        "|---|---:|",
        *(f"| `{name}` | {value:.3f} |" for name, value in results["steps_s"].items()),
        "",
        (
            "Which of torch, transformers and MNN are loaded at the end: "
            f"{', '.join(results['engine_or_torch_loaded']) or 'none'}."
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
