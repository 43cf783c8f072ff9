"""llama.cpp's files of the same model on the same tokens, and the speeds of both engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import sha256_file
from qplan.mnn.engine.session import EngineSession
from qplan.sensitivity.kept_logits import Logits
from reports.gguf.llama import TYPES, LlamaCpp
from reports.smollm2.measure import PHASES, Measurements, Row
from reports.smollm2.models import Model
from reports.smollm2.subject import Subject, tell

ROUNDS = 3
PROMPT_TOKENS, DECODE_TOKENS = 128, 32


def llama_of(subject: Subject, environments: Path) -> LlamaCpp:
    """llama.cpp on the subject's model; the imatrix is of the text of qplan's analysis."""
    return LlamaCpp(subject.loaded, environments, subject.work / "gguf", subject.analysis.calib)


def gguf_rows(llama: LlamaCpp, subject: Subject, measured: Measurements) -> list[Row]:
    """Bytes, RAM and losses of every type; first F32, which is not quantized."""
    rows = []
    for kind in ("F32", *TYPES):
        path = llama.file(kind)

        def measure(path: Path = path, kind: str = kind) -> Row:
            logits = llama.logits(path, subject.judged.rows)
            found = iter(np.load(logits, mmap_mode="r"))

            def next_row(_row: NDArray[np.int64]) -> Logits:
                return np.array(next(found))

            loss = measured.loss(kind, subject.judged, next_row)
            logits.unlink()
            sizes = {"file_bytes": llama.tensor_bytes(path), "ram_bytes": llama.ram_bytes(path)}
            return {"name": kind, "here": loss, **sizes}

        rows.append(measured.once(f"gguf-{kind}", subject.inputs | {"file": sha256_file(path)}, measure))
    return rows


def both_engines(llama: LlamaCpp, models: Sequence[Model], measured: Measurements, threads: Sequence[int]) -> list[Row]:
    """Tokens per second of llama.cpp's files and of MNN's folders: the fastest of rounds by turns.

    One thread by its processor time, all by the clock, which others on the machine disturb.
    """
    files = {kind: llama.file(kind) for kind in TYPES}
    here = {model.name: model for model in models if not model.for_phones}
    inputs = {"threads": str(threads)} | {kind: sha256_file(path) for kind, path in files.items()}
    inputs |= {name: model.digest for name, model in here.items()}

    def measure() -> list[Row]:
        best: dict[tuple[str, int], Row] = {}
        for turn in range(ROUNDS):
            tell(f"speeds of both engines: round {turn + 1} of {ROUNDS}")
            for count in threads:
                found = {kind: _of_llama(llama, path, count) for kind, path in files.items()}
                found |= {name: _of_mnn(model, count) for name, model in here.items()}
                for name, speed in found.items():
                    known = best.setdefault((name, count), {"name": name, "threads": count, **speed})
                    known |= {phase: max(known[phase], speed[phase]) for phase in PHASES}
        return list(best.values())

    rows: list[Row] = measured.once("both-engines", inputs, measure)
    return rows


def _of_llama(llama: LlamaCpp, path: Path, threads: int) -> dict[str, float]:
    speed = llama.tools.speed(path, threads, PROMPT_TOKENS, DECODE_TOKENS)
    return {"decode": speed.decode_tokens_per_s, "prefill": speed.prefill_tokens_per_s}


def _of_mnn(model: Model, threads: int) -> dict[str, float]:
    with EngineSession(model.folder, model.runtime(threads)) as engine:
        speed = engine.measure_speed(PROMPT_TOKENS, DECODE_TOKENS, 2, own_time=threads == 1)
    return {"decode": speed.decode_tokens_per_s, "prefill": speed.prefill_tokens_per_s}
