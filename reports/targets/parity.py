"""What a budget such as ``int4`` keeps of its promises on a real size: files, RAM, decode, prefill and loss.

``python -m reports.targets.parity MODEL_FOLDER --work FOLDER`` analyzes the model, makes, builds and proves the plans
of each budget under parity ``all`` and under parity ``files``, and prints a table in Markdown: the uniform export, and
both plans beside it. Times are over the uniform export's, by turns in the same session; RAM is the growth of the
engine's resident memory by loading. ``--run RUN`` takes an analysis that is there, and ``--only-print`` what was
emitted before. Options after ``--`` go to ``qplan analyze``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from qplan.artifact import sha256_json
from qplan.jobs.profile import machine
from qplan.report import notation
from qplan.report.felt import time_against
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.verification import BuiltModel, Verification
from reports.targets.console import tell

QPLAN = Path(sys.executable).with_name("qplan")
PARITIES = {"all": "", "files": "-files"}
"""What is asked for, and the end of the plan's folder."""
HEAD = (
    "| | files, MB | RAM, MB | predicted | decode time | prefill time | KL, nats/token | mean bits |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
)


def main() -> None:
    """Analyze, emit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--budgets", default="int4,int8")
    parser.add_argument("--emit", default="", help="further options of qplan emit")
    parser.add_argument("--only-print", action="store_true")
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    given, analyze = parser.parse_args(words[:own]), words[own + 1 :]
    run, budgets = given.run or given.work / "run", given.budgets.split(",")
    given.work.mkdir(parents=True, exist_ok=True)
    if not given.only_print:
        if given.run is None:
            command(["analyze", str(given.model), "--run", str(run), *analyze])
        for budget in budgets:
            for parity in PARITIES:
                emit = ["emit", "--run", str(run), "--budget", budget, "--parity", parity, *shlex.split(given.emit)]
                command(emit, may_fail=True)
    print("\n".join(page(given.model.name, run, budgets)))


def command(arguments: list[str], *, may_fail: bool = False) -> None:
    """Run qplan, with the machine's load before and after."""
    tell(f"load {os.getloadavg()[0]:.1f}: qplan {shlex.join(arguments)}")
    found = subprocess.run([QPLAN, *arguments], check=not may_fail, stdout=sys.stderr)
    tell(f"load {os.getloadavg()[0]:.1f}, exit code {found.returncode}")


def page(model: str, run: Path, budgets: list[str]) -> Iterator[str]:
    """The table of one model, and what was checked."""
    yield f"## {model}\n\n{machine()}; digest of plans {digest(run, budgets)}\n"
    yield from HEAD
    checks = []
    for budget in budgets:
        for parity, end in PARITIES.items():
            folder = PlanFolder(run / f"{budget}{end}")
            if not folder.verification.is_file():
                continue
            plan, verification = Plan.read(folder.plan), Verification.read(folder.verification)
            rival, built = verification.model(budget), verification.model("plan")
            if rival is None or built is None:
                continue
            if parity == "all":
                yield row(f"uniform {budget}", rival, rival, plan)
            yield row(f"plan, {budget}, parity {parity}", built, rival, plan)
            failed = [check.name for check in verification.checks if not check.passed]
            checks.append(f"- {budget}, parity {parity}: {len(verification.checks)} checks, failed: {failed or 'none'}")
    yield ""
    yield from checks


def row(label: str, model: BuiltModel, rival: BuiltModel, plan: Plan) -> str:
    """One model's line."""
    own = model.name == "plan"
    predicted = plan.footprint if own else {point.name: point.footprint for point in plan.uniform}.get(model.name)
    accuracy, speed = model.accuracy("low"), model.speed
    times = ["", ""]
    if speed is not None and rival.speed is not None:
        rates = (1e3 / speed.decode_tokens_per_s, 1e3 * speed.prompt_tokens / speed.prefill_tokens_per_s)
        told = [time_against(speed, rival.speed, phase) if own else "1" for phase in ("decode", "prefill")]
        times = [f"{rate:.2f} ms, {text}" for rate, text in zip(rates, told, strict=True)]
    cells = [
        f"{model.files.total / 1e6:,.2f}",
        "" if speed is None else f"{speed.ram_bytes / 1e6:,.2f}",
        "" if predicted is None else f"{predicted.ram_bytes / 1e6:,.2f}",
        *times,
        "" if accuracy is None else notation.loss(accuracy.kl_nats),
        f"{plan.mean_bits:.2f}" if own else "",
    ]
    return f"| {label} | {' | '.join(cells)} |"


def digest(run: Path, budgets: list[str]) -> str:
    """Tells apart tables of different plans."""
    plans = [PlanFolder(run / f"{budget}{end}").plan for budget in budgets for end in PARITIES.values()]
    formats = [{k: f.name for k, f in Plan.read(path).formats.items()} for path in plans if path.is_file()]
    return sha256_json(formats)[:8]


if __name__ == "__main__":
    main()
