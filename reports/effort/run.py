r"""Compares the plans of `qplan analyze`'s efforts with those of measured losses, on whole models.

Run from the repository's root with

    python -m reports.effort.run                                  # the embedded model
    python -m reports.effort.run --model ../shared/models/qwen2-8m --formats fp16,int8,int6,int5,int4,int3,int2 \
        --calib ../shared/data/wikitext2/valid.txt --judge ../shared/data/wikitext2/test.txt
    python -m reports.effort.run --model SMOLLM2 --layers 0,15,29 --formats fp16,int8,int5,int4,int3 \
        --calib ../shared/data/wikitext2/valid.txt --judge ../shared/data/wikitext2/test.txt \
        --measured-batches 1 --judged 16

SMOLLM2 is what ../shared/models/make_smollm2.py makes. Analyses are kept in ``--work``, a folder for one calibration
text; a killed one goes on where it was. Results of other models stay as they are.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from qplan.artifact import versions
from qplan.formats import DEFAULT_FORMATS, Formats, parse_formats
from qplan.run.calibration import CalibrationSet
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.sensitivity.metrics import TokenStats
from reports.effort.layers import LayersStudy
from reports.effort.page import write_page
from reports.effort.study import CALIB, DEMO, TEXT, WAYS, Study, Way

HOME = Path(__file__).parent
BUDGETS = ("3.5bpw", "4bpw", "int4", "4.5bpw", "5bpw", "6bpw", "int8")
LAYERS_BUDGETS = ("4bpw", "4.5bpw", "5bpw", "6bpw")
QUICK_BUDGETS = ("int4", "5bpw")


def compare(study: Study, budgets: tuple[str, ...]) -> dict[str, Any]:
    """Everything that the page says about a model."""
    tables = {way: study.table(way) for way in WAYS}
    yardstick = tables["measured"]
    plans: dict[Way, dict[str, Plan]] = {}
    for way in WAYS:
        print(f"{study.name}: plans of {way}", flush=True)
        plans[way] = {plan.budget: plan for plan in study.plans(way, budgets)}
    everything: dict[str, Formats] = {
        f"{way} {text}": plan.formats for way in WAYS for text, plan in plans[way].items()
    }
    print(f"{study.name}: whole plans", flush=True)
    alone = study.judge("measured", everything)
    # both efforts have the same folds and integers
    own = study.judge("default", {label: f for label, f in everything.items() if not label.startswith("measured")})
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for way in WAYS:
        for text, plan in plans[way].items():
            if text not in plans["measured"]:
                continue
            theirs, here = alone[f"measured {text}"], alone[f"{way} {text}"]
            stats = here if way == "measured" else own[f"{way} {text}"]
            same = sum(plan.formats[name] == fmt for name, fmt in plans["measured"][text].formats.items())
            found[way].append(
                {
                    "budget": text,
                    "kl_nats": stats.kl_nats,
                    "ratio": stats.kl_nats / theirs.kl_nats,
                    "stderr": _stderr(stats, theirs, study.judged_sequences),
                    "formats_alone": here.kl_nats / theirs.kl_nats,
                    "alone_stderr": _stderr(here, theirs, study.judged_sequences),
                    "same_formats": same / len(plan.formats),
                    "predicted": plan.predicted_nats / stats.kl_nats,
                }
            )
    card, conditions = yardstick.model, yardstick.conditions
    # a text in a file without the folders of this machine
    named = "/".join(Path(str(conditions.calibration)).parts[-2:])
    return {
        "parameters": card.parameters,
        "tensors": len(card.tensors),
        "layers": list(study.layers) if isinstance(study, LayersStudy) else None,
        "formats": list(conditions.formats),
        "measured_tokens": sum(row.tokens for row in yardstick.measurements) // _entries(yardstick),
        "fit_tokens": int(CalibrationSet.read(study.run("default").calibration).fit.size),
        "calibration": f"{conditions.samples} sequences of {conditions.seq_len} tokens of {named}",
        "judged_text": "/".join(Path(study.text).parts[-2:]),
        "judged_tokens": study.judged_sequences * conditions.seq_len,
        "plans": found,
        "notes": {way: [str(told) for told in table.notes] for way, table in tables.items()},
        "versions": versions(),
    }


def _entries(table: SensitivityTable) -> int:
    return len({(row.tensor, row.format, row.memory) for row in table.measurements})


def _stderr(ours: TokenStats, theirs: TokenStats, sequences: int) -> float:
    """Standard error over sequences of the ratio of two mean losses on the same tokens."""
    first, second = (stats.kl.reshape(sequences, -1).mean(1) for stats in (ours, theirs))
    ratio = float(first.mean() / second.mean())
    return float((first - ratio * second).std()) / math.sqrt(sequences) / float(second.mean())


def main() -> None:
    """Compare, write ``results.json`` and ``README.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO / "stdlib-3m"), help="folder of a Hugging Face model")
    parser.add_argument("--formats", default=",".join(fmt.name for fmt in DEFAULT_FORMATS))
    parser.add_argument("--calib", default=CALIB, help="text that analyses see")
    parser.add_argument("--judge", default=TEXT, help="text that plans are judged on")
    parser.add_argument("--work", type=Path, default=Path("build/effort"), help="folder that keeps the analyses")
    parser.add_argument("--measured-batches", type=int, help="measure losses on so many batches; all by default")
    parser.add_argument("--judged", type=int, default=Study.judged_sequences, help="sequences that plans are judged on")
    parser.add_argument("--layers", help="numbers of layers, such as 0,15,29: plan only these, all else stays fp16")
    parser.add_argument("--quick", action="store_true", help="two budgets only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(
        options.model,
        options.work,
        parse_formats(options.formats),
        options.measured_batches,
        options.calib,
        options.judge,
        options.judged,
    )
    budgets: tuple[str, ...] = BUDGETS
    if options.layers is not None:
        study = LayersStudy(**vars(study), layers=tuple(map(int, options.layers.split(","))))
        budgets = LAYERS_BUDGETS
    if options.quick:
        budgets = tuple(text for text in budgets if text in QUICK_BUDGETS)
    path = HOME / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results[study.name] = compare(study, budgets)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_page(results, HOME / "README.md")


if __name__ == "__main__":
    main()
