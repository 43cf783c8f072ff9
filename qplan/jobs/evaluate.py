"""Tasks of lm-evaluation-harness, of an MNN model folder and of the Hugging Face model that it was made from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.harness.installed import require_harness
from qplan.harness.scores import TaskScore, task_scores
from qplan.harness.tasks import load_tasks
from qplan.jobs.options import EvalOptions
from qplan.mnn.engine.engine import checked_folder
from qplan.model.door import check_source
from qplan.model.source import fetch
from qplan.settings import Say

if TYPE_CHECKING:
    from qplan.harness.backend import MnnLM

_BOOTSTRAPS = 1000
"""Draws for standard errors of metrics that have no formula; the harness's 100,000 take minutes."""


@dataclass(frozen=True)
class Evaluated:
    """Scores of a folder, and what they were computed with."""

    harness: str
    """Version of lm-evaluation-harness."""
    engine: str
    """Version of MNN."""
    memory: str
    precision: str
    threads: int
    limit: int | None
    """Samples of each task at most; None for all."""
    scores: tuple[TaskScore, ...]


def run_eval(options: EvalOptions, say: Say) -> Evaluated:
    """Load the tasks, run them on the engine, and then on the reference in FP32.

    Args:
        options: what was asked for.
        say: called with a line about each step.

    Raises:
        InputError: the harness is not installed; a folder, task or reference that cannot be used; other tokens.
        PreflightError: the folder's model would crash, be refused or compute garbage.
        ToolError: the engine failed.
    """
    require_harness()
    checked_folder(options.folder)
    if options.reference is not None:
        check_source(options.reference)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default that a task file leaves to it
    say(f"loading {', '.join(options.tasks)}")
    manager, tasks = load_tasks(options.tasks, options.include_path)
    shared = {
        "tasks": tasks,
        "task_manager": manager,
        "limit": options.limit,
        "num_fewshot": options.num_fewshot,
        "bootstrap_iters": _BOOTSTRAPS,
        "log_samples": False,
    }
    say(f"running {options.folder} on the engine")
    with _engine_model(options) as model:
        runtime = model.runtime
        ours = _results(model, shared)
        engine = model.engine.version
    theirs = None
    if options.reference is not None:
        say(f"running {options.reference} in FP32")
        theirs = _results(_hugging_face(fetch(options.reference)), shared)
    return Evaluated(
        harness=version("lm_eval"),
        engine=engine,
        memory=runtime.memory,
        precision=runtime.precision,
        threads=runtime.threads,
        limit=options.limit,
        scores=task_scores(ours, theirs),
    )


def _results(model: object, shared: Mapping[str, Any]) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate  # noqa: PLC0415 - optional

    found: Mapping[str, Any] = simple_evaluate(model, **shared)
    return found


def _hugging_face(folder: Path) -> object:
    """The harness's own model of a Hugging Face model, in FP32."""
    import torch  # noqa: PLC0415 - not without a reference
    from lm_eval.api.registry import get_model  # noqa: PLC0415 - optional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return get_model("hf")(pretrained=str(folder), dtype="float32", device=device, batch_size=1)


def _engine_model(options: EvalOptions) -> MnnLM:
    """The folder, which scores the same tokens as its reference.

    Raises:
        InputError: another tokenizer than the reference's.
    """
    from qplan.harness.backend import MnnLM  # noqa: PLC0415 - optional, and takes seconds

    if options.reference is None:
        return MnnLM(options.folder, threads=options.threads)
    from transformers import AutoConfig, AutoTokenizer  # noqa: PLC0415 - not without a reference

    from qplan.model.stock import blamed_on  # noqa: PLC0415
    from qplan.verify.same_tokens import require_same_tokens  # noqa: PLC0415

    folder = fetch(options.reference)
    with blamed_on(folder, "has no configuration and tokenizer that transformers can use"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    context = getattr(config, "max_position_embeddings", None)
    model = MnnLM(options.folder, threads=options.threads, prefix_token_id=first, max_length=context)
    try:
        require_same_tokens(model.engine, tokenizer, options.folder, options.reference, "scores")
    except BaseException:  # also an interrupt: no one would end the engine
        model.close()
        raise
    return model
