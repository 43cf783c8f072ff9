"""The same model quantized by llama.cpp, and qplan's plans at the bytes of its files.

Run from the repository's root with

    python -m reports.gguf.run MODEL --calib FILE --text FILE --work FOLDER

Installs llama.cpp's library from a package (no compiler is needed) into an environment of its own, adds the model to
``results.json``, and writes ``README.md`` and ``losses.png`` beside it. What ``--work`` holds is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qplan.artifact import versions
from qplan.choosing.request import PlanRequest
from qplan.errors import ToolError
from qplan.jobs.emit import run_emit
from qplan.jobs.options import EmitOptions
from qplan.model.load import LoadedModel, load_model
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.sensitivity.kept_logits import kept_logits
from reports.gguf.page import write_page
from reports.gguf.tensors import write_tensors
from reports.peers.environment import REQUIREMENTS, prepare
from reports.plans.study import SEQ_LEN, Study

HOME = Path(__file__).parent
PEER = "llama.cpp"
TYPES = ("Q4_0", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")


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


class LlamaCpp:
    """llama.cpp on one model, in its own environment."""

    def __init__(self, loaded: LoadedModel, python: Path, folder: Path) -> None:
        """Convert the model."""
        self._python, self._folder = python, folder
        self._whole = folder / "f32.gguf"
        if not self._whole.is_file():
            weights = write_tensors(loaded, folder)
            self._call("convert", weights, self._whole)
            weights.unlink()

    def file(self, kind: str) -> Path:
        """The file of a type; `F32` is not quantized."""
        path = self._folder / f"{kind}.gguf"
        if kind == "F32":
            return self._whole
        if not path.is_file():
            self._call("quantize", self._whole, path, kind)
        return path

    def logits(self, path: Path, rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Path:
        """A file's logits on some rows of tokens, as ``.npy``; delete it."""
        tokens, out = self._folder / "tokens.npy", self._folder / "logits.npy"
        np.save(tokens, rows.astype(np.int32))
        self._call("logits", path, tokens, out)
        return out

    def _call(self, command: str, *arguments: object) -> None:
        line = [str(self._python), str(HOME / "native.py"), command, *map(str, arguments)]
        done = subprocess.run(line, check=False, capture_output=True, text=True)
        if done.returncode:
            msg = f"llama.cpp cannot {command}"
            raise ToolError(msg, command=" ".join(line), code=done.returncode, tail=done.stderr[-2000:])


def llama_files(study: Study, loaded: LoadedModel, options: argparse.Namespace) -> Iterator[Gguf]:
    """Every type, judged against the model in FP32; first F32 itself."""
    folder = study.folder / f"{study.name}-gguf"
    folder.mkdir(parents=True, exist_ok=True)
    engine = LlamaCpp(loaded, prepare(PEER, options.environments), folder)
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
                row = Gguf(kind, path.stat().st_size, stats.kl_nats, stats.top1)
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
    files = list(llama_files(study, loaded, options))
    wanted = [file for file in files if file.type in options.plans]
    path = HOME / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results[study.name] = {
        "parameters": loaded.card.parameters,
        "rows": sorted({spec.in_features for spec in loaded.card.tensors}),
        "calibration": Path(options.calib).name,
        "judged": {"text": Path(options.text).name, "tokens": options.judged * SEQ_LEN},
        "engine": versions()["MNN"],
        "library": ", ".join(REQUIREMENTS[PEER][:2]),
        "files": [asdict(file) for file in files],
        "plans": [asdict(plan) for plan in plans(study, wanted)],
    }
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_page(results, HOME)


if __name__ == "__main__":
    main()
