"""Measures architectures: whether an fp16 export computes what the Hugging Face model computes, on this engine."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from qplan.artifact import temporary_folder
from qplan.compat.table import ArchitectureCell, shown_error, today
from qplan.errors import QplanError
from qplan.mnn.build.exporter import export
from qplan.mnn.build.exporter_source import ExportOptions, find_exporter
from qplan.mnn.engine.probe import Outcome, run_probe
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.specimen import save_specimen, token_ids
from qplan.model.specimen_sizes import SPECIMENS, check_architectures
from qplan.sensitivity.kept_logits import Logits
from qplan.settings import Say

TOKENS = (48, 200)
"""Lengths of sequences: within and beyond the windows and rotations of the specimens."""

ARCHITECTURE_LIMIT = 1e-3
"""Largest relative error of an export against torch with the matrices rounded as the export stores them."""


def measure_architectures(
    say: Say, names: tuple[str, ...] = tuple(SPECIMENS), llmexport: Path | None = None
) -> Iterator[ArchitectureCell]:
    """Measure specimens at fp16 on the installed engine, against the Hugging Face model in FP32.

    Args:
        say: called with a line about each step.
        names: names in `SPECIMENS`.
        llmexport: an MNN checkout whose exporter to use; None for the installed package.

    Raises:
        InputError: no such specimen.
    """
    check_architectures(names)
    exporter = find_exporter(llmexport).version
    for name in names:
        with temporary_folder("compat") as temporary:
            work = Path(temporary)
            folder, failure = work / "mnn", ""
            try:
                save_specimen(name, work / "hf")
                export(work / "hf", folder, ExportOptions(), llmexport=llmexport)
            except (QplanError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
                failure = str(getattr(error, "tail", "") or error).strip().rpartition("\n")[2][:200]
            for tokens in TOKENS:
                outcome: Outcome = "export fails"
                error_: float | None = None
                detail = failure
                if not failure:
                    outcome, error_, detail = _against_torch(work / "hf", folder, token_ids(tokens))
                shown = detail if error_ is None else f"{error_:.1e}"
                say(f"{name}, {tokens} tokens: {outcome} {shown}")
                yield ArchitectureCell(
                    architecture=name,
                    exporter=exporter,
                    transformers=version("transformers"),
                    engine=version("MNN"),
                    tokens=tokens,
                    outcome=outcome,
                    error=shown_error(error_),
                    detail=detail,
                    date=today(),
                )


def _against_torch(model: Path, folder: Path, ids: list[int]) -> tuple[Outcome, float | None, str]:
    torch_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        _round_as_exported(torch_model)
        expected: Logits = torch_model(torch.tensor([ids])).logits[0].numpy()
    ran = run_probe(folder, ids, RuntimeConfig("normal"))
    outcome, error = ran.judged(expected, ARCHITECTURE_LIMIT)
    return outcome, error, ran.detail


def _round_as_exported(model: Any) -> None:  # noqa: ANN401 - a PreTrainedModel
    """Matrices become halves; an untied embedding is stored as bfloat16."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter is not embedding:
            parameter.copy_(parameter.half().float())
    kept = torch.float16 if embedding is head else torch.bfloat16
    embedding.copy_(embedding.to(kept).float())
