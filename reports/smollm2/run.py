"""SmolLM2-135M-Instruct, or another model, on MNN's engine: uniform exports, the official recipe, qplan's plans.

Run from the repository's root with

    python -m reports.smollm2.run                       # from the hub: about an hour on two processors
    python -m reports.smollm2.run --quick               # minutes: fewer tokens, no plan is fitted as a whole, no ARM
    python -m reports.smollm2.run --model FOLDER --calib FILE --text FILE --work FOLDER
    python -m reports.smollm2.run --again plan-int8     # after a change of qplan: this plan anew, and what hangs on it
    python -m reports.smollm2.run --gguf                # also llama.cpp's files, which it builds llama.cpp for

Adds to ``--work`` what it makes and measures, and makes none of it twice: killed, it goes on. Writes ``results.json``,
``README.md`` and a figure into ``--out``: here, with ``--quick`` into the folder of ``--work``. The emulated ARM engine
is left out where ``qplan engines add arm`` has not fetched it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from qplan.artifact import versions
from qplan.calibration import check_text
from qplan.jobs.options import AnalyzeOptions
from qplan.jobs.profile import machine
from qplan.mnn.arm.home import arm_is_there
from qplan.report.notation import model_name, place
from qplan.run.plan_folder import PlanFolder
from qplan.run.provenance import Provenance
from qplan.run.table import SensitivityTable
from qplan.run.took import Took
from reports.gguf.llama import PEER, TYPES
from reports.gguf.page import SUPER_BLOCK
from reports.gguf.tools import IMATRIX_TOKENS, PACKAGE
from reports.peers.environment import REQUIREMENTS
from reports.smollm2.figure import draw
from reports.smollm2.llama import both_engines, gguf_rows, llama_of
from reports.smollm2.measure import NEW_TOKENS, QUESTIONS, Measurements, took_s
from reports.smollm2.models import OFFICIAL, PHONE_PLANS, PLANS, UNIFORM, Wanted, models
from reports.smollm2.page import write_page
from reports.smollm2.subject import Subject, tell

HOME = Path(__file__).parent
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1"
TOKENS, SEQ_LEN, EMULATED_TOKENS = 4096, 512, 128
FIT_TOKENS, QUICK_TOKENS = 32768, 1024
PLAN_NAMES = tuple(one.name for one in (*PLANS, *PHONE_PLANS))
MADE_AGAIN = (*UNIFORM, OFFICIAL.name, *PLAN_NAMES, *(f"plan-{kind}" for kind in TYPES))


def names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads names of a list, with commas between them."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(filter(None, text.split(",")))
        unknown = [name for name in found if name not in known]
        if unknown:
            msg = f"{', '.join(unknown)}: known are {', '.join(known)}"
            raise argparse.ArgumentTypeError(msg)
        return found

    return read


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="hub id or Hugging Face folder")
    parser.add_argument("--calib", default=f"{WIKITEXT}:validation", help="text that plans are made on")
    parser.add_argument("--text", default=f"{WIKITEXT}:test", help="text that all are judged on")
    parser.add_argument("--work", type=Path, default=Path("qplan-runs/report-smollm2"), help="kept and reused")
    parser.add_argument("--name", help="the model's name on the page; the last part of --model, if not given")
    parser.add_argument("--out", type=Path, help="where the page is written")
    parser.add_argument("--quick", action="store_true", help="minutes: to see that it works")
    parser.add_argument("--processor", default="arm-dot", help="ARM processor to emulate")
    parser.add_argument("--emulated-tokens", type=int, default=EMULATED_TOKENS, help="of the text, on it; 0 for none")
    parser.add_argument(
        "--again", type=names(MADE_AGAIN), default=(), help="models to make anew, with commas between them"
    )
    parser.add_argument(
        "--tune", action=argparse.BooleanOptionalAction, default=True, help="fit the first two plans as a whole"
    )
    parser.add_argument(
        "--plans", type=names(PLAN_NAMES), default=PLAN_NAMES, help="plans to make, with commas between them"
    )
    parser.add_argument("--gguf", action="store_true", help="also llama.cpp's files, and plans of their bytes")
    parser.add_argument(
        "--threads",
        type=lambda text: sorted({int(word) for word in text.split(",")}),
        default=sorted({1, os.cpu_count() or 1}),
        help="numbers of threads that llama.cpp and MNN are timed with",
    )
    parser.add_argument(
        "--gguf-plans", type=names(TYPES), default=TYPES, help="types of whose bytes plans are made, likewise"
    )
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "qplan-peers", help="where llama.cpp is built"
    )
    parser.add_argument("--note", default="", help="a sentence about the model, for the page")
    parser.add_argument(
        "--leave-out", default="", help="beginnings of names of uniform exports that are no fair rivals for the model"
    )
    return parser.parse_args()


def subject_of(options: argparse.Namespace) -> Subject:
    """What is judged, and how thoroughly."""
    quick = options.quick
    analysis = AnalyzeOptions(model=options.model, calib=options.calib, effort="quick", fit_tokens=FIT_TOKENS)
    emulated = 0 if quick or not arm_is_there() else options.emulated_tokens
    return Subject(
        model=options.model,
        text=options.text,
        tokens=QUICK_TOKENS if quick else TOKENS,
        seq_len=SEQ_LEN,
        work=options.work / "quick" if quick else options.work,
        analysis=replace(analysis, samples=4, seq_len=128, fit_tokens=1024) if quick else analysis,
        emulated_tokens=emulated,
        processor=options.processor,
        quick=quick,
        leave_out=tuple(filter(None, options.leave_out.split(","))),
        tunes=not quick and options.tune,
    )


def results_of(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the page tells."""
    every = PLANS + (PHONE_PLANS if subject.emulated_tokens else ())
    wanted = tuple(one for one in every if one.name in options.plans)
    with ExitStack() as stack:
        measured, files, both = Measurements(subject, stack), [], []
        llama = llama_of(subject, options.environments) if options.gguf else None
        if llama is not None:
            files = gguf_rows(llama, subject, measured)
            asked = [file for file in files if file["name"] in options.gguf_plans]
            wanted += tuple(Wanted(f"{file['file_bytes']}B", "files", beside=file["name"]) for file in asked)
        made = list(models(subject, wanted, options.again))
        speeds = measured.speeds(made)
        rows = [measured.row(model) for model in made]
        texts = measured.texts_of_fp32()["texts"]
        if llama is not None:
            both = both_engines(llama, made, measured, options.threads)
    table = SensitivityTable.read(subject.run.sensitivity)
    analyzed, own = Took.read(subject.run.took), subject.analysis
    plans = [Provenance.read(PlanFolder(one.folder.parent)).took for one in made if one.mean_bits is not None]
    return {
        "model": options.name or model_name(options.model),
        "note": options.note,
        "parameters": table.model.parameters,
        "text": place(options.text),
        "tokens": subject.judged.tokens,
        "seq_len": subject.judged.rows.shape[1],
        "analysis": {
            "command": f"qplan analyze MODEL --calib {place(options.calib)} --effort quick --samples {own.samples} "
            f"--seq-len {own.seq_len} --fit-tokens {own.fit_tokens}",
            "seconds": None if analyzed is None else analyzed.seconds,
        },
        "machine": machine(),
        "engine": versions()["MNN"],
        "processor": subject.processor,
        "reference_perplexity": rows[0]["here"]["reference_perplexity"],
        "rows": rows,
        "speeds": speeds,
        "gguf": {
            "files": files,
            "speeds": both,
            "tools": PACKAGE,
            "library": REQUIREMENTS[PEER][0],
            "imatrix_tokens": IMATRIX_TOKENS if llama is not None and llama.imatrix is not None else 0,
            "odd_rows": sorted({spec.in_features for spec in table.model.tensors if spec.in_features % SUPER_BLOCK}),
        },
        "questions": QUESTIONS,
        "new_tokens": NEW_TOKENS,
        "texts": texts,
        "took_s": {
            "plans": sum(took.seconds for each in plans for took in each if took.command == "emit"),
            "measured": took_s(subject.work),
        },
    }


def main() -> None:
    """Make what is missing, and write the page."""
    options = parse()
    for option, text in (("--calib", options.calib), ("--text", options.text)):
        check_text(text, option)
    subject = subject_of(options)
    subject.work.mkdir(parents=True, exist_ok=True)
    subject.analyzed()
    results = results_of(subject, options)
    out = options.out or (subject.work if options.quick else HOME)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw(results, out / "losses.png")
    write_page(results, out)
    tell(f"wrote {out / 'README.md'}")


if __name__ == "__main__":
    main()
