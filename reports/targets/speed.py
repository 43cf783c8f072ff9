"""How fast MNN's engine is with each format, on this machine: what the targets' relative speeds rest on.

``python -m reports.targets.speed MODEL_FOLDER --work FOLDER`` builds uniform models with random weights of the model's
shape, and times them in turn, one thread, by the thread's own processor time. A model has the head in int8 and all
other linears in the format, so that what differs is these alone; `dynamic_option` 2 is timed beside 0 on the same
builds. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

from qplan.formats import FP16, INT8, QuantFormat
from qplan.jobs.profile import drawn, fastest, machine
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import load_model
from qplan.tensors import Role
from reports.targets.console import tell

FORMATS = (
    FP16,
    *(QuantFormat(bits, block) for bits in (8, 4) for block in (0, 64, 32)),
    *(QuantFormat(bits, 64) for bits in (6, 5, 3, 2)),
    QuantFormat(4, 64, symmetric=True),
)
PROMPT, DECODE, REPEATS = 128, 24, 2


def main() -> None:
    """Build, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    loaded = load_model(str(given.model), stream=True)
    card = loaded.card
    skeleton = export_skeleton(loaded.folder, given.work / "skeleton", replace=True)
    trials = {f"body {fmt}": (fmt, INT8) for fmt in FORMATS} | {"head int4": (INT8, QuantFormat(4))}
    for label, (body, head) in trials.items():
        formats = {
            spec.name: (head if spec.role is Role.HEAD else body).resolve(spec.in_features) for spec in card.tensors
        }
        build_model(
            skeleton,
            card.tensors,
            formats,
            lambda name, fmt: drawn(card.tensor(name), fmt),
            given.work / label.replace(" ", "-"),
            replace=True,
        )
    times: dict[str, dict[str, list[float]]] = {}
    for turn in range(given.rounds):
        for label, (body, _) in trials.items():
            for option in (0,) if body.is_float else (0, 2):
                runtime = RuntimeConfig("low", threads=1, dynamic_option=option)
                with EngineSession(given.work / label.replace(" ", "-"), runtime, context=card.context) as engine:
                    found = fastest(engine.measure_speed(PROMPT, DECODE, REPEATS, own_time=True))
                    row = times.setdefault(f"{label} option {option}", {"prefill": [], "decode": [], "ram": []})
                    row["prefill"].append(found.prefill_ms)
                    row["decode"].append(found.decode_ms)
                    row["ram"].append(engine.ram_bytes / 1e6)
        tell(f"round {turn + 1} of {given.rounds}")
    body_weights = sum(spec.weights for spec in card.tensors if spec.role is not Role.HEAD)
    shown = {
        "machine": machine(),
        "model": given.model.name,
        "body_weights": body_weights,
        "head_weights": sum(spec.weights for spec in card.tensors) - body_weights,
        "ops": len(card.tensors),
        "prompt_tokens": PROMPT,
        "times": {
            label: {key: [round(statistics.median(v), 3), round(min(v), 3), round(max(v), 3)] for key, v in row.items()}
            for label, row in times.items()
        },
    }
    print(json.dumps(shown, indent=1))
    shutil.rmtree(given.work)


if __name__ == "__main__":
    main()
