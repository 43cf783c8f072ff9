"""The model that is judged, its texts, and the folder where everything is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from qplan.artifact import sha256_json, versions
from qplan.calibration import load_text
from qplan.jobs.analyze import run_analyze
from qplan.jobs.bench import reference_ids
from qplan.jobs.options import AnalyzeOptions
from qplan.jobs.skeletons import run_skeleton
from qplan.mnn.build.skeleton import Skeleton
from qplan.model.load import LoadedModel, load_model
from qplan.run.folder import RunFolder
from qplan.sensitivity.kept_logits import KeptLogits, kept_logits
from qplan.settings import Folding
from qplan.verify.folder import Windows, windows

TRAINING_TOKENS = 32768
"""That folds are trained on."""


@dataclass(frozen=True)
class Subject:
    """One model, judged on one text."""

    model: str
    """Hub id or local folder."""
    text: str
    """What models are judged on."""
    tokens: int
    seq_len: int
    work: Path
    """Everything that is made is kept here, and not made again."""
    analysis: AnalyzeOptions
    emulated_tokens: int
    """Of the text's beginning, on the emulated ARM processor; 0 to leave it out."""
    processor: str
    quick: bool = False
    """Whether plans are left as they are planned, and not repaired."""
    leave_out: tuple[str, ...] = ()
    """Beginnings of names of uniform exports that are no fair rivals for this model."""
    tunes: bool = True
    """Whether any plan is fitted as a whole."""

    @property
    def run(self) -> RunFolder:
        """The analysis."""
        return RunFolder(self.work / "run")

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model as it is, not folded."""
        return load_model(self.model)

    @cached_property
    def judged(self) -> Windows:
        """The text's beginning."""
        text = load_text(self.text, self.loaded.tokenizer, tell)
        length = min(self.seq_len, self.loaded.card.context)
        return windows(reference_ids(text, self.loaded.tokenizer, self.tokens), self.tokens, length)

    @cached_property
    def skeleton(self) -> Skeleton:
        """The graph that uniform models are built from."""
        return run_skeleton(self.run, self.loaded, None, tell, unfolded=True)

    @property
    def inputs(self) -> dict[str, str]:
        """What a measured loss depends on besides the folder."""
        return {
            "reference": self.loaded.card.sha256,
            "rows": sha256_json(self.judged.rows.tolist()),
            "engine": versions()["MNN"],
        }

    def analyzed(self, fold: Folding = "auto") -> RunFolder:
        """The finished analysis with folds that were found so; made now, or gone on with, if it is not there."""
        run = self.run if fold == "auto" else RunFolder(self.work / f"run-{fold}")
        if not run.is_finished:
            run_analyze(self.options_of(fold), run, tell, quiet)
        return run

    def options_of(self, fold: Folding) -> AnalyzeOptions:
        """Options of the analysis with such folds: training wants more and shorter windows."""
        if fold == "auto" or self.quick:
            return replace(self.analysis, fold=fold)
        return replace(self.analysis, fold=fold, seq_len=128, fit_tokens=TRAINING_TOKENS)

    def command_for(self, fold: Folding) -> tuple[str, ...]:
        """The command of an analysis with such folds, where it is not the page's first one."""
        own = self.options_of(fold)
        if fold == "auto":
            return ()
        asked = f"--effort quick --samples {own.samples} --seq-len {own.seq_len} --fit-tokens {own.fit_tokens}"
        return (f"qplan analyze MODEL --calib TEXT {asked} --fold {fold}",)

    @contextmanager
    def reference(self) -> Iterator[KeptLogits]:
        """What the model in FP32 says of the text, until the block ends."""
        tell(f"FP32 on {self.judged.tokens:,} tokens")
        with kept_logits(self.loaded, self.judged.rows) as found:
            yield found


def tell(text: str) -> None:
    """Print a line."""
    print(text, flush=True)


def quiet(_done: int, _total: int) -> None:
    """Drop progress."""
