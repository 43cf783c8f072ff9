"""Signals in every stage of analyses and emits of models that stay on the disk; see `reports.faults.hits`.

An analysis gets a ``--max-memory`` that lies between what it takes with the model on the disk and in memory. An emit of
a model this small would have no room for an engine under such a limit: it is told to leave the weights where they are.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import qplan.jobs.analyze  # noqa: F401 - so that forked processes need not import it
from qplan.cost.expected import Expected
from qplan.cost.one_pass import OnePassCost
from qplan.cost.work import REFERENCE
from qplan.folding.analyzed import load_analyzed
from qplan.formats import parse_formats
from qplan.jobs.expect import one_pass_options
from qplan.jobs.options import AnalyzeOptions
from qplan.model.outline import outline
from qplan.settings import Effort
from reports.faults.bench import results_of
from reports.faults.chain import Chain
from reports.faults.hits import Row, hits
from reports.faults.page import TIDYING
from tests.support.ended_early import forked
from tests.support.tiny_models import save_model, words

MODELS = {"tied": "qwen2", "untied": "llama", "mixture of experts": "qwen3_moe"}
"""Tiny random models of three layers, or two with experts."""

_MIDST = (0.5,)

_FORMATS = "int8,int4,int3"
_SIZES: dict[Effort, tuple[int, int, int]] = {"quick": (6, 32, 3), "default": (24, 64, 12)}
"""Samples, tokens of each, and batch size; with more tokens the default effort has passes left to measure losses."""

SERIES: tuple[tuple[str, str, Effort], ...] = tuple(
    (command, label, effort) for effort in _SIZES for label in MODELS for command in ("analyze", "emit")
)
"""Commands that are hit, on a model with an effort."""

_PER_STAGE = {"analyze": None, "emit": 3}
"""How many kinds of changes are drawn from every stage of a command, which takes seconds or minutes; None for all."""

_FIT_TOKENS = 512
_EMIT = "--budget int4 --repair 1 --tokens 64 --dynamic-option 0 --max-memory 4GB"
_STAGE = re.compile(r"stage \d+ of \d+, ([^:,/(\n]+)")
_NUMBER = re.compile(r"\b\d[\d.e-]*")
_NAMES = (
    (r"\.([^/]+)\.qplan-\d+-\w{8}(\.\w+)?", r"\1"),
    (r"\d+-(of-)?\d+(?=\.safetensors)", "N"),
    (r"-[0-9a-f]{12}", ""),
    (r"/[0-9a-f]{12}", ""),
    (r"(model\.layers|lm_head).*", "NAME"),
    (r"slopes-\d+", "slopes"),
    (r"(draft|replaced)/.*", r"\1/FILE"),
)
"""What is left of a file's name to tell kinds of files apart."""


@dataclass(frozen=True)
class Series:
    """Commands on one model with one effort."""

    home: Path
    label: str
    effort: Effort

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.home / "run"

    @property
    def options(self) -> AnalyzeOptions:
        """What is asked for, before a limit on the memory."""
        samples, seq_len, batch_size = _SIZES[self.effort]
        return AnalyzeOptions(
            model=str(self.home.parent / MODELS[self.label]),
            calib=str(self.home.parent / "text.txt"),
            samples=samples,
            seq_len=seq_len,
            batch_size=batch_size,
            fit_tokens=_FIT_TOKENS,
            formats=parse_formats(_FORMATS),
            effort=self.effort,
        )

    def analysis(self) -> Chain:
        """The analysis, which is hit at every kind of change."""
        asked = self.options
        given: dict[str, Any] = {"--calib": asked.calib, "--formats": _FORMATS, "--effort": self.effort}
        given |= {"--samples": asked.samples, "--seq-len": asked.seq_len, "--batch-size": asked.batch_size}
        given |= {"--fit-tokens": asked.fit_tokens, "--run": self.run, "--max-memory": f"{_limit(asked):.0f}B"}
        words_ = [str(word) for pair in given.items() for word in pair]
        line = ["analyze", asked.model, *words_]
        chain = Chain(self.home, self.run, line, _numbered_stage, _kind, self._everything, self._opened)
        return replace(chain, midst=_MIDST)

    def emit(self) -> Chain:
        """An emit from the finished analysis, which is hit while child processes are at work as well."""
        line = ["emit", "--run", str(self.run), *_EMIT.split()]
        results = partial(results_of, self.run, "int4")
        return Chain(self.home, self.run, line, _numbered_stage, _kind, results, self._opened, midst=_MIDST)

    @property
    def _opened(self) -> Path:
        """What is opened while the model is loaded."""
        return Path(self.options.model) / "tokenizer.json"

    def _everything(self) -> dict[str, str]:
        """Hashes of everything that the run holds; the lines of the journal may come in any order."""
        found = {}
        for path in sorted(path for path in self.run.rglob("*") if path.is_file()):
            data = path.read_bytes()
            data = b"\n".join(sorted(data.split(b"\n"))) if path.suffix == ".jsonl" else data
            found[str(path.relative_to(self.run))] = hashlib.sha256(data).hexdigest()
        return found


def streamed(
    home: Path, done: Callable[[Row], None], *, quick: bool, series: Sequence[tuple[str, str, Effort]] = ()
) -> None:
    """Run series.

    Args:
        home: folder for it all.
        done: called with every row.
        quick: a single analysis.
        series: those to run; empty for all.
    """
    torch.set_num_threads(1)
    home.mkdir(parents=True, exist_ok=True)
    (home / "text.txt").write_text(words(4000, seed=1), encoding="utf-8")
    for command, label, effort in series or (SERIES[:1] if quick else SERIES):
        run = analyses if command == "analyze" else emits
        for row in run(_series(home, label, effort), _PER_STAGE[command]):
            done({"command": command, "model": label, "effort": effort} | row)


def analyses(series: Series, per_stage: int | None) -> Iterator[Row]:
    """An analysis in peace, and one that is hit."""
    chain = replace(series.analysis(), per_stage=per_stage)
    course = chain.do()
    expected = chain.results()
    shutil.rmtree(series.run)
    yield from hits(chain, course, expected)


def emits(series: Series, per_stage: int | None) -> Iterator[Row]:
    """An emit in peace, and one that is hit, from the same analysis."""
    series.analysis().do()
    chain = replace(series.emit(), per_stage=per_stage)
    before = series.home / "analyzed"
    shutil.copytree(series.run, before)

    def on_disk(*args: Any, most_bytes: float | None = None) -> Any:  # noqa: ANN401, ARG001 - as the original's
        return load_analyzed(*args, most_bytes=0)

    with patch("qplan.jobs.emit.load_analyzed", on_disk):
        course = chain.do()
        expected = chain.results()
        shutil.rmtree(series.run)
        before.rename(series.run)
        yield from hits(chain, course, expected)


def _series(home: Path, label: str, effort: Effort) -> Series:
    """A series in an empty folder."""
    if not (home / MODELS[label]).is_dir():
        forked(partial(save_model, MODELS[label], home / MODELS[label]), home / "saved.txt")
    folder = home / f"{MODELS[label]}-{effort}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return Series(folder, label, effort)


def _numbered_stage(told: str) -> str:
    found = _STAGE.findall(told)
    return _NUMBER.sub("N", found[-1]).strip() if found else TIDYING


def _kind(event: str, path: str) -> str:
    if event == "starts":
        return f"while {path} is at work"
    for pattern, shown in _NAMES:
        path = re.sub(pattern, shown, path)
    return f"{event} {path}"


def _limit(options: AnalyzeOptions) -> float:
    """Bytes between what the analysis takes with the model on the disk and in memory."""
    shape = outline(options.model)
    asked = one_pass_options(options, shape)
    ways = (asked, replace(asked, streamed=True))
    return sum(Expected(OnePassCost(shape, way, REFERENCE).stages()).memory_bytes for way in ways) / 2
