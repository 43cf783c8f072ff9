"""What one engine does with one model folder: right, wrong, refused, crashed or hung."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import temporary_folder
from qplan.mnn.child import Child, plain_text
from qplan.mnn.files import CONFIG_FILE
from qplan.mnn.host import THIS_PYTHON, EngineHost
from qplan.mnn.runtime import RuntimeConfig

Outcome = Literal["ok", "wrong", "refused", "crash", "hang", "export fails"]
"""``wrong``: logits that are not those of the model, without a message."""


@dataclass(frozen=True)
class ProbeResult:
    """How a run ended."""

    outcome: Outcome
    """``ok`` if there are logits, right or wrong."""
    logits: NDArray[np.float32] | None
    """``[paths, tokens, vocabulary]``, in the order of the paths."""
    detail: str
    """The signal or the engine's last words; empty if there are logits."""

    def judged(self, expected: NDArray[np.float32], limit: float) -> tuple[Outcome, float | None]:
        """Outcome and relative error, the largest over all paths, against ``[tokens, vocabulary]``."""
        if self.logits is None:
            return self.outcome, None
        if self.logits.shape[1:] != expected.shape or not np.isfinite(self.logits).all():
            return "wrong", None
        reference = expected.astype(np.float64)
        errors = [float(np.linalg.norm(path - reference) / np.linalg.norm(reference)) for path in self.logits]
        return ("ok" if max(errors) <= limit else "wrong"), max(errors)


def run_probe(
    folder: Path,
    token_ids: list[int],
    runtime: RuntimeConfig,
    *,
    host: EngineHost = THIS_PYTHON,
    timeout_s: float = 120,
    paths: Sequence[str] = ("prefill", "decode"),
) -> ProbeResult:
    """Run a model in a child process.

    Args:
        folder: the model.
        token_ids: one sequence.
        runtime: settings of the engine.
        host: runs the engine.
        timeout_s: seconds until it counts as hung, times the host's patience.
        paths: ``prefill`` (one pass), ``decode`` (token by token), or both.
    """
    settings, ids = json.dumps(runtime.to_json()), json.dumps(token_ids)
    with temporary_folder("probe") as work:
        target = work / "logits.npy"
        config = str((folder / CONFIG_FILE).resolve())
        command = host.command("engine/probe_child.py", [config, settings, ids, str(target), ",".join(paths)])
        with (work / "log").open("w+b") as log:
            with Child(command, cwd=work, stdout=log, stderr=log) as process:
                try:
                    process.wait(timeout_s * host.patience)
                except subprocess.TimeoutExpired:
                    return ProbeResult("hang", None, f"no end after {timeout_s * host.patience:g} s")
            log.seek(0)
            words = plain_text(log.read()).replace(f"{folder.resolve()}/", "")  # no paths of this machine in results
        if process.returncode == 0 and target.is_file():
            return ProbeResult("ok", np.load(target), "")
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            refused = _refusal(words)
            return ProbeResult("crash", None, f"{name} after: {refused}" if refused else name)
        return ProbeResult("refused", None, _refusal(words) or words.strip().rpartition("\n")[2][:200])


def _refusal(words: str) -> str:
    """The line in which the engine says why."""
    marks = ("input but not found", "not found", "Can't", "Error", "error", "Failed")
    return next((line.strip()[:200] for mark in marks for line in words.splitlines() if mark in line), "")
