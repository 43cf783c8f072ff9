"""What one engine does with one model folder: right, wrong, refused, crashed or hung."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import temporary_folder
from qplan.mnn.child import Child, plain_text
from qplan.mnn.files import CONFIG_FILE
from qplan.mnn.runtime import RuntimeConfig

Outcome = Literal["ok", "wrong", "refused", "crash", "hang", "export fails"]
"""``wrong``: logits that are not those of the model, without a message."""


@dataclass(frozen=True)
class ProbeResult:
    """How a run ended."""

    outcome: Outcome
    """``ok`` if there are logits, right or wrong."""
    logits: NDArray[np.float32] | None
    """``[2, tokens, vocabulary]``: in one pass, and token by token."""
    detail: str
    """The signal or the engine's last words; empty if there are logits."""

    def judged(self, expected: NDArray[np.float32], limit: float) -> tuple[Outcome, float | None]:
        """Outcome and relative error, the larger over both paths, against ``[tokens, vocabulary]``."""
        if self.logits is None:
            return self.outcome, None
        if self.logits.shape[1:] != expected.shape or not np.isfinite(self.logits).all():
            return "wrong", None
        reference = expected.astype(np.float64)
        errors = [float(np.linalg.norm(path - reference) / np.linalg.norm(reference)) for path in self.logits]
        return ("ok" if max(errors) <= limit else "wrong"), max(errors)


def run_probe(
    folder: Path, token_ids: list[int], runtime: RuntimeConfig, *, python: Path | None = None, timeout_s: float = 120
) -> ProbeResult:
    """Run a model in a child process.

    Args:
        folder: the model.
        token_ids: one sequence.
        runtime: settings of the engine.
        python: an interpreter with MNN and numpy; None for this one.
        timeout_s: seconds until it counts as hung.
    """
    script = Path(__file__).with_name("probe_child.py")
    settings, ids = json.dumps(runtime.to_json()), json.dumps(token_ids)
    with temporary_folder("probe") as work:
        target = work / "logits.npy"
        config = str((folder / CONFIG_FILE).resolve())
        interpreter = sys.executable if python is None else str(python.absolute())
        command = [interpreter, "-P", str(script), config, settings, ids, str(target)]
        with (work / "log").open("w+b") as log:
            with Child(command, cwd=work, stdout=log, stderr=log) as process:
                try:
                    process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    return ProbeResult("hang", None, f"no end after {timeout_s:g} s")
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
