"""All checks of a folder, in the order in which the engine would run into the problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qplan.mnn.engines import EngineVersion
from qplan.mnn.files import CONTEXT_KEY
from qplan.mnn.preflight.checksums import check_checksums
from qplan.mnn.preflight.embedding import check_embedding, check_tokenizer
from qplan.mnn.preflight.engine_settings import check_engine_settings
from qplan.mnn.preflight.finding import Finding
from qplan.mnn.preflight.inputs import check_inputs
from qplan.mnn.preflight.model import ModelFolder
from qplan.mnn.preflight.numbers import check_numbers
from qplan.mnn.preflight.other_folder import refuse_other_folder
from qplan.mnn.preflight.ranges import check_ranges
from qplan.mnn.preflight.records import check_records
from qplan.mnn.preflight.settings import check_settings
from qplan.mnn.preflight.tie import check_tie
from qplan.mnn.preflight.versions import check_version

Check = Callable[[ModelFolder], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    check_settings,
    check_engine_settings,
    check_version,
    check_inputs,
    check_ranges,
    check_records,
    check_numbers,
    check_tie,
    check_embedding,
    check_tokenizer,
    check_checksums,
)


@dataclass(frozen=True)
class Preflight:
    """What was found in a folder."""

    folder: Path
    engine: EngineVersion
    findings: tuple[Finding, ...]
    vocabulary: int | None
    """Width of the logits; None if the graph could not be read."""
    context: int | None
    """Longest sequence that the model was made for; None if the folder does not say."""
    stops: tuple[int, ...] = ()
    """Tokens that end a text."""
    starts: tuple[int, ...] = ()
    """Tokens that the engine's tokenizer puts before every text."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """``config.json`` and ``llm_config.json``, as the engine merges them."""
    file_bytes: int = 0
    """Of graph, weights and embedding."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep the model from running right."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


def check_folder(folder: Path, engine: EngineVersion | None = None, *, full: bool = False) -> Preflight:
    """Check a model folder, whoever made it, without loading the engine.

    Args:
        folder: holds ``config.json`` and what it names.
        engine: version to judge by; None for the installed one.
        full: read all scales instead of samples.

    Raises:
        InputError: no such folder, or one that holds something else than an MNN model.
    """
    refuse_other_folder(folder)
    model = ModelFolder.read(folder, engine or EngineVersion.installed())
    for check in CHECKS:
        found = check_numbers(model, full=full) if check is check_numbers else check(model)
        model.findings.extend(found)
    head = model.head()
    limit = model.whole(CONTEXT_KEY)
    return Preflight(
        folder=folder,
        engine=model.engine,
        findings=tuple(model.findings),
        vocabulary=head.out_features if head is not None else None,
        context=limit if limit is not None and limit > 0 else None,
        stops=model.tokenizer.stops if model.tokenizer is not None else (),
        starts=model.tokenizer.prefix if model.tokenizer is not None else (),
        settings=model.settings,
        file_bytes=model.file_bytes,
    )
