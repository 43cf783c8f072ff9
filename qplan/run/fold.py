"""The decision whether to fold a run's model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import body_of, decoding, is_there, read_json, write_json
from qplan.card import ModelCard
from qplan.errors import InputError
from qplan.notes import Note, note
from qplan.run.decode import decode_artifact
from qplan.run.folder import RunFolder
from qplan.settings import Memory

KIND, SCHEMA = "qplan-fold", 1

_REMEDY = "make it again with 'qplan analyze' and --restart"


@dataclass(frozen=True)
class FoldRecord:
    """Whether a model was folded, and the losses that decided it."""

    original: str
    """Local folder or hub id of the model that the user gave."""
    original_sha256: str
    folded_sha256: str | None
    """Hash of the folded model; None if folding did not pay off."""
    memory: Memory
    losses: Mapping[str, Mapping[str, float]]
    """Emulated joint loss in nats per token on the calibration tokens, rounded as the run rounds: by candidate
    (``original``, ``folded``) and uniform model, such as ``int8, memory low``."""
    tokenizer_sha256: str | None = None
    """Hash of the folded model's other files, tokenizer and templates; None without one, and in earlier versions."""

    @property
    def note(self) -> Note:
        """The decision, and the ratios of losses that led to it."""
        ratios = {name: fold_ratio(self.losses, name) for name in self.losses["original"]}
        return note("folded" if self.folded_sha256 else "folding-left-out", ratios=ratios)

    def write(self, path: Path, inputs: Mapping[str, str]) -> None:
        """Write ``fold.json``."""
        body = {
            "original": self.original,
            "original_sha256": self.original_sha256,
            "folded_sha256": self.folded_sha256,
            "memory": self.memory,
            "losses": self.losses,
            "tokenizer_sha256": self.tokenizer_sha256,
        }
        write_json(path, KIND, SCHEMA, inputs, body)

    @classmethod
    def read(cls, path: Path) -> FoldRecord:
        """Read what `write` wrote.

        Raises:
            InputError: another kind of file, or a field is missing, unknown or of another type; names the line.
            StaleArtifactError: written by a newer qplan.
        """
        record = decode_artifact(cls, body_of(read_json(path, KIND, SCHEMA, remedy=_REMEDY)), path, _REMEDY)
        with decoding(path, _REMEDY):
            _ = record.note  # the losses of both candidates are there
        return record


def inputs_of(path: Path) -> dict[str, str]:
    """Hashes of what a record's decision depended on.

    Raises:
        InputError: another kind of file.
        StaleArtifactError: written by a newer qplan.
    """
    with decoding(path, _REMEDY):
        found: dict[str, str] = read_json(path, KIND, SCHEMA, remedy=_REMEDY)["inputs"]
    return found


def fold_of(run: RunFolder, card: ModelCard) -> FoldRecord | None:
    """How the model of a finished analysis was folded; None if it is as the user gave it."""
    if not is_there(run.fold):
        return None
    record = FoldRecord.read(run.fold)
    return record if record.folded_sha256 == card.sha256 else None


def check_model_there(run: RunFolder, card: ModelCard) -> None:
    """Refuse a run whose model is no longer where it was analyzed. Hub ids are left to who fetches them.

    Raises:
        InputError: names the run and the folder.
    """
    record = fold_of(run, card)
    folder = Path(card.source if record is None else record.original).expanduser()
    if folder.is_absolute() and not folder.is_dir():
        again = f"--run {shlex.quote(str(run.folder))}"
        msg = (
            f"{run.folder} was made from the model in {folder}, which is not there any more; move it back, or run the "
            f"same 'qplan analyze' with where it is now and {again}: measurements are kept, plans are made again"
        )
        raise InputError(msg)


def analyzed_folder(run: RunFolder, card: ModelCard) -> Path:
    """The Hugging Face folder of the model that a run's table is about: the folded one, or the one that the user gave.

    A model from the hub has no such folder: the path is then made from its id and does not exist.
    """
    return Path(card.source).expanduser() if fold_of(run, card) is None else run.folded


def fold_ratio(losses: Mapping[str, Mapping[str, float]], name: str) -> float:
    """Loss of a uniform model, folded over original; 1 if the original loses nothing."""
    before = losses["original"][name]
    return losses["folded"][name] / before if before else 1.0
