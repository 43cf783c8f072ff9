"""The same model quantized by llama.cpp, and qplan's plans at the bytes of its files.

Run from the repository's root with

    python -m reports.gguf.run MODEL --calib FILE --text FILE --work FOLDER

Builds llama.cpp's programs from a package (with cmake and a C++ compiler), installs its library from another into an
environment of its own, adds the model to ``results.json``, and writes ``README.md`` and ``losses.png`` beside it. What
``--work`` holds is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qplan.artifact import versions
from qplan.choosing.request import PlanRequest
from qplan.jobs.emit import run_emit
from qplan.jobs.options import EmitOptions
from qplan.model.load import LoadedModel, load_model
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.sensitivity.kept_logits import kept_logits
from reports.gguf.llama import PEER, TYPES, LlamaCpp
from reports.gguf.page import write_page
from reports.gguf.tools import PACKAGE
from reports.peers.environment import REQUIREMENTS
from reports.plans.study import SEQ_LEN, Study

HOME = Path(__file__).parent


@dataclass(frozen=True)
class Gguf:
    """One file of llama.cpp."""

    type: str
    file_bytes: int
    kl_nats: float
    top1: float


@dataclass(frozen=True)
class Planned:
    """qplan's plan within the bytes of such a file, and the uniform exports, on MNN's engine under memory low."""

    type: str
    file_bytes: int
    kl_nats: float
    uniform: dict[str, tuple[int, float]]
    """Bytes and loss of the uniform exports, by format."""


def llama_files(study: Study, loaded: LoadedModel, folder: Path, engine: LlamaCpp) -> Iterator[Gguf]:
    """Every type, judged against the model in FP32; first F32 itself."""
    rows = study.tokens(loaded).numpy()
    with kept_logits(loaded, rows) as reference:
        for kind in ("F32", *TYPES):
            kept = folder / f"{kind}.json"
            if not kept.is_file():
                print(f"llama.cpp {kind}", flush=True)
                path = engine.file(kind)
                logits = engine.logits(path, rows)
                found = iter(np.load(logits, mmap_mode="r"))
                stats = reference.compare(lambda _ids, found=found: np.array(next(found)))  # type: ignore[misc]
                logits.unlink()
                row = Gguf(kind, engine.tensor_bytes(path), stats.kl_nats, stats.top1)
                kept.write_text(json.dumps(asdict(row)), encoding="utf-8")
            yield Gguf(**json.loads(kept.read_text(encoding="utf-8")))


def plans(study: Study, files: list[Gguf]) -> Iterator[Planned]:
    """What qplan ships within the bytes of each type's file."""
    run = study.analyzed("low", "all", "auto")
    for file in files:
        kept = run.folder / f"gguf-{file.type}.json"
        if not kept.is_file():
            print(f"qplan within {file.file_bytes:,} bytes of {file.type}", flush=True)
            kept.write_text(json.dumps(asdict(_plan(study, run, file))), encoding="utf-8")
        yield Planned(**json.loads(kept.read_text(encoding="utf-8")))


def _plan(study: Study, run: RunFolder, file: Gguf) -> Planned:
    budget = f"{file.file_bytes}B"
    wanted = PlanRequest(budgets=parse_budgets([budget]), rules=Rules(parity="files"))
    options = EmitOptions(wanted=wanted, text=study.text, tokens=study.judged * SEQ_LEN)
    command = f"qplan emit --budget {budget} --parity files"
    proof = run_emit(options, run, lambda _: None, lambda _done, _total: None, command).verification
    models = {} if proof is None else {name: proof.model(name) for name in ("plan", "int8", "int4")}
    losses = {name: (m.files.total, m.accuracy("low")) for name, m in models.items() if m is not None}
    found = {name: (total, near.kl_nats) for name, (total, near) in losses.items() if near is not None}
    if "plan" not in found:
        msg = f"{budget}: the engine's loss is missing"
        raise RuntimeError(msg)
    total, kl_nats = found.pop("plan")
    return Planned(file.type, total, kl_nats, found)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face folder of a Qwen2 or Llama model")
    parser.add_argument("--calib", default="python-stdlib", help="text of qplan's analysis")
    parser.add_argument("--text", required=True, help="text that all are judged on")
    parser.add_argument("--judged", type=int, default=16, help="its sequences of 256 tokens")
    parser.add_argument("--work", type=Path, required=True, help="folder of files and runs, kept and reused")
    parser.add_argument(
        "--plans",
        type=lambda text: tuple(name for name in text.split(",") if name),
        default=TYPES,
        help="types within whose bytes qplan plans, with commas between them; '' for none",
    )
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "qplan-peers", help="where llama.cpp is installed"
    )
    return parser.parse_args()


def main() -> None:
    """Judge one model, and write the page of all."""
    options = parse()
    study = Study(options.model, options.calib, options.text, options.judged, options.work)
    loaded = load_model(options.model)
    folder = study.folder / f"{study.name}-gguf"
    engine = LlamaCpp(loaded, options.environments, folder, options.calib)
    files = list(llama_files(study, loaded, folder, engine))
    wanted = [file for file in files if file.type in options.plans]
    path = HOME / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results[study.name] = {
        "parameters": loaded.card.parameters,
        "rows": sorted({spec.in_features for spec in loaded.card.tensors}),
        "calibration": Path(options.calib).name,
        "judged": {"text": Path(options.text).name, "tokens": options.judged * SEQ_LEN},
        "engine": versions()["MNN"],
        "library": f"{PACKAGE}, {REQUIREMENTS[PEER][0]}",
        "imatrix": engine.imatrix is not None,
        "files": [asdict(file) for file in files],
        "plans": [asdict(plan) for plan in plans(study, wanted)],
    }
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_page(results, HOME)


if __name__ == "__main__":
    main()
