"""What uniform models lose on emulated ARM processors and on this machine, and how long that takes.

``python -m reports.arm.losses --work FOLDER`` exports the embedded model, builds it uniformly, and runs it as
``qplan emit --prove`` does, on the engine that ``qplan engines add arm`` fetched. Prints JSON: losses, and processor
seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

import qplan.demo
from qplan.calibration import load_text, tokenize
from qplan.formats import FP16, QuantFormat
from qplan.mnn.arm.home import require_arm
from qplan.mnn.arm.processors import find_processor
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import load_model
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.kept_logits import kept_logits
from qplan.verify.arm import ArmTrial, prove_on_arm

HOME = Path(qplan.demo.__file__).parent

CASES = ((FP16, 0), *((QuantFormat(8, block), option) for block in (64, 0) for option in (0, 2)))
"""Format of every tensor, and ``dynamic_option``."""

PROCESSORS = ("arm-i8mm",)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models")
    parser.add_argument("--processors", default=",".join(PROCESSORS))
    given = parser.parse_args()
    names = given.processors.split(",")
    engine = require_arm(tuple(names), "--processors")
    loaded = load_model(str(HOME / "stdlib-3m"))
    text = load_text(str(HOME / "heldout.txt"), loaded.tokenizer, lambda _: None)
    card = loaded.card
    rows = tokenize(
        text, loaded.tokenizer, samples=1, seq_len=256, seed=0, context=card.context, vocabulary=card.vocabulary
    ).tokens
    skeleton = export_skeleton(loaded.folder, given.work / "skeleton")
    found = []
    with kept_logits(loaded, rows) as reference:
        for fmt, option in CASES:
            formats = {spec.name: fmt.resolve(spec.in_features) for spec in card.tensors}
            folder = given.work / "model"
            build_model(skeleton, card.tensors, formats, Rounder(loaded).store, folder, replace=True)
            runtime = RuntimeConfig(dynamic_option=option)
            trial = ArmTrial(folder=folder, formats=formats, runtime=runtime, card=card, reference=reference)
            for name in names:
                before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
                hosts = {name: engine.host(find_processor(name))}
                proof = prove_on_arm(trial, hosts, jobs=1, progress=lambda *_: None)
                seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
                found.append(
                    {
                        "format": fmt.name,
                        "dynamic_option": option,
                        "processor": name,
                        "tokens": trial.tokens,
                        "processor_s": round(seconds, 1),
                        "kl": {f"{run.precision} {run.path}": run.accuracy.kl_nats for run in proof.runs},
                        "kl_here": {run.path: run.here_nats for run in proof.runs},
                    }
                )
    print(json.dumps({"mnn": engine.manifest.mnn, "qemu": engine.manifest.qemu, "found": found}, indent=1))


if __name__ == "__main__":
    main()
