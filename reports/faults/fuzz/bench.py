"""Whole folders that cases are copies of: two runs, a Hugging Face model, an MNN model, texts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import SEAL, sha256_json
from qplan.mnn.checksums import write_checksums
from qplan.run.journal import Journal
from qplan.run.plan_folder import PLAN_FILE
from qplan.run.table import SensitivityTable
from reports.faults.fuzz.runner import Outcome, run
from tests.support.golden import GOLDEN
from tests.support.tiny_models import save_model, words

ANALYSIS = (
    *("--mode", "gradient", "--fold", "off", "--rounding", "gptq", "--samples", "1", "--seq-len", "8"),
    *("--fit-tokens", "64", "--jobs", "1", "--formats", "fp16,int8,int4", "--calib", "text.txt"),
)
"""Options of an analysis of the tiny model that takes a second."""

PLANNING = ("--no-build", "--repair", "0")
"""Options of an emit that takes seconds."""

EDITED = frozenset({PLAN_FILE})
"""Artifacts that people may edit: they hold no hash of their content."""


@dataclass(frozen=True)
class Bench:
    """Where the whole folders lie.

    ``golden`` is a run without its model, ``small`` one with model, rounding and skeleton, ``hf`` a Hugging Face
    folder, ``mnn`` a model folder with checksums; there are texts beside them.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Bench:
        """Make everything; the exporter runs once."""
        save_model("qwen2", folder / "hf")
        (folder / "text.txt").write_text(words(1000))
        (folder / "short.txt").write_text("few words")
        make_golden(folder / "golden")
        bench = cls(folder)
        bench.must("analyze", "hf", *ANALYSIS, "--run", "small")
        bench.must("emit", *PLANNING, "--budget", "int4", "--run", "small")
        shutil.copytree(folder / "small" / "skeleton", folder / "mnn")
        write_checksums(folder / "mnn")
        return bench

    def must(self, *line: str) -> Outcome:
        """Run a command in the whole folders that must succeed.

        Raises:
            RuntimeError: it did not.
        """
        outcome = run(line, self.folder)
        if outcome.code:
            msg = f"{' '.join(line)}: {outcome.stderr}"
            raise RuntimeError(msg)
        return outcome

    def files(self, base: str) -> list[str]:
        """Files of a whole folder that a case may damage, relative to it."""
        root = self.folder / base
        left_out = {".lock", "solved.json", "report.html", "report.md"}
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name not in left_out)

    @contextmanager
    def copy(self, into: Path, bases: Sequence[str]) -> Iterator[Path]:
        """A folder with copies of some of the whole folders, and the texts; removed at the end."""
        into.mkdir(parents=True)
        try:
            for base in bases:
                shutil.copytree(self.folder / base, into / base)
            for name in ("text.txt", "short.txt"):
                shutil.copyfile(self.folder / name, into / name)
            yield into
        finally:
            for path, _, _ in os.walk(into):
                Path(path).chmod(0o700)
            shutil.rmtree(into)


def make_golden(folder: Path) -> None:
    """The golden run as today's qplan would have left it: with hashes in everything that has one."""
    shutil.copytree(GOLDEN, folder)
    for path in folder.rglob("*.json"):
        value = json.loads(path.read_text(encoding="utf-8"))
        if path.name not in EDITED and "kind" in value:
            path.write_text(json.dumps(value | {SEAL: sha256_json(value)}, indent=1, ensure_ascii=False))
    table = SensitivityTable.read(folder / "sensitivity.parquet")
    table.write(folder / "sensitivity.parquet")
    old = folder / "sensitivity.journal.jsonl"
    fingerprint = json.loads(old.read_text(encoding="utf-8").splitlines()[0])["fingerprint"]
    old.unlink()
    with Journal(old, fingerprint) as journal:
        for measurement in table.measurements[:20]:
            journal.add(measurement)
