"""From a model to an MNN folder that runs, in one call."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import pandas as pd

from qplan.choosing.request import PlanRequest
from qplan.cost.target import DEFAULT_TARGET
from qplan.errors import VerificationError
from qplan.explore import html, told
from qplan.explore.plan import PlanView
from qplan.explore.run import Run, open_run
from qplan.jobs.options import QUANTIZED_TO, AnalyzeOptions, QuantizeOptions
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.planner.size import Size
from qplan.report.quantized import QuantizedRows
from qplan.report.summary import PLAN
from qplan.report.words import Language
from qplan.run.plan_folder import PlanFolder
from qplan.settings import Effort, one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qplan.mnn.engine.engine import Engine
    from qplan.mnn.runtime import RuntimeConfig


def quantize(
    model: str | Path,
    out: str | Path | None = None,
    budget: str = QUANTIZED_TO,
    *,
    target: str = DEFAULT_TARGET,
    calib: str | Path = AnalyzeOptions.calib,
    effort: Literal["auto", "quick", "default", "thorough"] = "auto",
    max_context: int | None = None,
    llmexport: str | Path | None = None,
    max_memory: str | None = None,
    lang: Literal["en", "zh"] = "en",
    run: str | Path | None = None,
    restart: bool = False,
    verbose: bool = False,
    quiet: bool = False,
) -> Quantized:
    """Quantize a model for MNN: analyze, plan, build and prove it, as `qplan quantize` does.

    It takes minutes, or hours for large models. It may be interrupted at any moment, a kernel's restart included: the
    same call goes on where it was.

    Args:
        model: local folder or hub id of a causal language model.
        out: folder of the MNN model; an earlier one of qplan's is replaced. None for MODEL-BUDGET-MNN, here.
        budget: no more than a uniform export takes (``int4``, ``int8``), or files of ``4.5bpw``, ``300MB``, ``60%``
            of fp16.
        target: where it runs, such as ``phone``.
        calib: text like what the model will see: a name from calib/, a .txt, .jsonl or .parquet file, or a `datasets`
            id or folder.
        effort: how thorough the analysis is; ``auto`` is default where that takes minutes, and quick for large models.
        max_context: longest sequence in tokens of the built model, where the exporter is wrong beyond.
        llmexport: an MNN checkout whose exporter to use; None for the package.
        max_memory: most memory, such as ``10GB``; a model that needs more is read from the disk layer by layer.
        lang: language of the report.
        run: run folder, for all that is known of the model; None for ``qplan-runs/<model>``.
        restart: discard an earlier run with other inputs.
        verbose: tell every step.
        quiet: tell nothing.

    Returns:
        The folder that runs, what was measured of it, and the run. Displayed, it is a table beside a uniform export.

    Raises:
        InputError: a model, a text, an option or a place cannot be used; the message names options as the command
            line writes them.
        InfeasibleError: no plan fits the budget.
        StaleArtifactError: the run folder holds results of other inputs.
        ToolError: exporter, converter or engine failed.
        VerificationError: the export is wrong, or the built model, which is there, does not do what the plan promised.

    Example:
        >>> made = qplan.quantize("Qwen/Qwen2.5-0.5B-Instruct", budget="int4", calib="my-text.jsonl")
        >>> made.losses
        >>> with made.engine() as engine:
        ...     print(*engine.generate(engine.chat("What is a prime number?"), 64), sep="")
    """
    asked = one_of("effort", effort, ("auto", *get_args(Effort)))
    options = QuantizeOptions(
        model=_source(model),
        out=_path(out),
        wanted=PlanRequest(budgets=parse_budgets([budget]), rules=Rules.parse(target=target)),
        calib=_source(calib),
        effort=None if asked == "auto" else one_of("effort", asked, get_args(Effort)),
        max_context=max_context,
        llmexport=_path(llmexport),
        language=one_of("language", lang, Language),
        run=_path(run),
        restart=restart,
        max_memory_bytes=None if max_memory is None else int(Size.parse(max_memory, "--max-memory").bytes),
    )
    from qplan.jobs.checks import check_quantize  # noqa: PLC0415 - torch takes seconds: not for a wrong word

    check_quantize(options)
    from qplan.jobs.emitted import check_promises  # noqa: PLC0415
    from qplan.jobs.quantize import Audience, run_quantize  # noqa: PLC0415

    audience = Audience(
        say=_ignore if quiet else told.tell,
        steps=told.tell if verbose else None,
        bar=(lambda _label: nullcontext(_uncounted)) if quiet else told.bar,
    )
    made = run_quantize(options, audience, options.command)
    try:
        check_promises(made.emitted)
    except VerificationError as error:
        home = str(made.home.folder)
        error.add_note(f"the model is in {made.out}; qplan.open_run({home!r}) has all that was measured")
        raise
    return Quantized(made.out, open_run(made.home.folder), made.emitted.folder.name)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A model that was quantized and proved."""

    out: Path
    """The MNN folder, ready to run."""
    run: Run
    """All that is known of the model, as `qplan.open_run` opens it."""
    name: str
    """Name of the plan in the run."""

    @cached_property
    def plan(self) -> PlanView:
        """The plan that was built, with what the engine measured: as `run.plan` reads it."""
        return self.run.plan(self.name)

    @property
    def report(self) -> Path:
        """The page with all of it."""
        return PlanFolder(self.run.home.folder / self.name).report

    @property
    def losses(self) -> Mapping[str, float]:
        """KL to FP32 that the engine measured, nats per token: of the ``plan``, then of uniform exports by name."""
        verification, memory = self.plan.verification, self.plan.plan.memory
        models = () if verification is None else sorted(verification.models, key=lambda model: model.name != PLAN)
        measured = {model.name: model.accuracy(memory) for model in models}
        return {name: accuracy.kl_nats for name, accuracy in measured.items() if accuracy is not None}

    @property
    def verification(self) -> pd.DataFrame:
        """What the engine measured of the plan and of uniform exports, as the rows of `Run.verification` are."""
        frame = self.run.verification
        return frame[frame["budget"] == self.name].reset_index(drop=True)

    def engine(self, runtime: RuntimeConfig | None = None) -> Engine:
        """The model on MNN's engine, in its own process; see `qplan.Engine`.

        Args:
            runtime: settings of the engine; None for memory low, 1 thread.

        Raises:
            ToolError: the engine does not load it.
        """
        return self.run.engine(self.name, runtime)

    @cached_property
    def _card(self) -> tuple[QuantizedRows, list[str]]:
        rows = QuantizedRows.of(self.plan.plan, self.plan.verification)
        return rows, [rows.note, f"model {self.out}", f"report {self.report}", f"run {self.run.folder}"]

    def __repr__(self) -> str:
        """The table in a terminal."""
        found, lines = self._card
        return html.text_card(found.heading, lines, html.text_table(found.head, found.rows))

    def _repr_html_(self) -> str:
        found, lines = self._card
        return html.card(found.heading, lines, html.rows_table(found.head, found.rows))

    def _repr_markdown_(self) -> str:
        found, lines = self._card
        return html.markdown_card(found.heading, lines, html.markdown_table(found.head, found.rows))


def _source(given: str | Path) -> str:
    """What a folder, a file or the hub is called; a word of the hub's, and ``./name``, stay as they are."""
    text = str(given)
    return str(Path(text).expanduser()) if text.startswith("~") else text


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given).expanduser()


def _ignore(_line: str) -> None:
    """Takes lines that nobody asked for."""


def _uncounted(_done: int, _total: int) -> None:
    """Takes progress that nobody asked for."""
