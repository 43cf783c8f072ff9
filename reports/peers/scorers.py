"""The peers' scorers, each run in a child process in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from qplan.artifact import sha256_json
from qplan.errors import ToolError
from reports.peers.environment import REQUIREMENTS, prepare
from reports.peers.score.job import Answer, Job

ROOT = Path(__file__).parents[2]
"""Root folder of the repository."""

TIMEOUT_S = 7200


@dataclass(frozen=True)
class Scorer:
    """One of a peer's ways to score and plan."""

    name: str
    """Name on the command line."""
    label: str
    """Name on the page."""
    peer: str
    """Name of its environment, and of its module under `reports.peers.score`."""
    variant: str = ""
    """Which of the module's scorers; see there."""


SCORERS = (
    Scorer("modelopt-gradient", "ModelOpt gradient", "modelopt", "gradient"),
    Scorer("modelopt-fused", "ModelOpt gradient, fused groups", "modelopt", "gradient fused"),
    Scorer("modelopt-kl", "ModelOpt KL", "modelopt", "kl_div"),
    Scorer("autoround", "AutoRound AutoScheme", "autoround"),
    Scorer("nncf", "NNCF", "nncf"),
    Scorer("nncf-hessian", "NNCF Hessian", "nncf", "hessian_input_activation"),
    Scorer("mlx", "mlx-lm dynamic_quant", "mlx"),
    Scorer("quark", "Quark Weight-MSE", "quark"),
    Scorer("quark-perplexity", "Quark Weight-MSE, perplexity gate", "quark", "perplexity"),
)


def ask(scorer: Scorer, job: Job, environments: Path, folder: Path) -> Answer:
    """Let a scorer plan; reuse an answer to the same job that is in ``folder`` already.

    Args:
        scorer: the scorer to ask.
        job: what to ask; its variant is replaced by the scorer's.
        environments: where peers are installed.
        folder: where jobs and answers are kept.

    Raises:
        ToolError: the peer cannot be installed, crashes, hangs or leaves no answer.
    """
    question = asdict(job) | {"variant": scorer.variant}
    same = [question | {"tokens": job.ids.tolist()}, REQUIREMENTS[scorer.peer]]
    name = f"{scorer.name}-{sha256_json(same)[:12]}"
    asked, answered, log = (folder / f"{name}{end}" for end in (".job.json", ".json", ".log"))
    if answered.is_file():
        return Answer.read(answered)
    python = prepare(scorer.peer, environments)
    asked.write_text(json.dumps(question), encoding="utf-8")
    command = [str(python), "-m", f"reports.peers.score.{scorer.peer}", str(asked), str(answered)]
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # nothing is fetched, and NNCF reports nothing home
    apart = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NNCF_CI": "1", "TOKENIZERS_PARALLELISM": "false"}
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=inherited | single | apart,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
        )
    if done.returncode or not answered.is_file():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
        msg = f"{scorer.label} gave no plan"
        raise ToolError(msg, command=" ".join(command), code=done.returncode, tail=tail)
    return Answer.read(answered)
