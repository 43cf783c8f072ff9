"""Loads the model that a run's table was measured on: folded, or as the user gave it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qplan.artifact import is_there
from qplan.card import ModelCard
from qplan.cost.free import free_memory, most_memory
from qplan.errors import DamagedArtifactError, InputError, StaleArtifactError
from qplan.model.load import LoadedModel, load_model, loading_line
from qplan.model.source import sha256_beside_model
from qplan.run.fold import FoldRecord, check_model_there, fold_of
from qplan.run.folder import RunFolder
from qplan.settings import Say


@dataclass(frozen=True)
class AnalyzedModel:
    """The model of a finished analysis."""

    loaded: LoadedModel
    """The analyzed model: folded if that paid off."""
    original: LoadedModel
    """The model as the user gave it, which MNN's exporter would convert; ``loaded`` itself if nothing was folded."""


def weights_memory(limit: int | None) -> float:
    """Bytes that weights in float32 may take of a command's memory: half of a limit, whatever is free without one."""
    return free_memory() if limit is None else most_memory(limit) / 2


def load_analyzed(
    run: RunFolder,
    card: ModelCard,
    say: Say,
    *,
    most_bytes: float | None = None,
    stream_original: bool = False,
) -> AnalyzedModel:
    """Load the model that a run's table was measured on, streamed if it does not fit into memory.

    Args:
        run: the run.
        card: the model of its table.
        say: called with a line about it.
        most_bytes: memory for the weights in float32, of the model before folding too; None for what is free.
        stream_original: leave the weights of the model before folding on the disk, whatever the memory.

    Raises:
        InputError: it is not there any more, or no usable model.
        StaleArtifactError: the model or its folded copy has changed.
        DamagedArtifactError: the folded copy is not whole, or the record of it is gone.
    """
    check_model_there(run, card)
    record = fold_of(run, card)
    need = 4 * card.parameters * (1 if record is None else 2)
    stream = need > (free_memory() if most_bytes is None else most_bytes)
    say(loading_line(card.source if record is None else run.folded, streamed=stream))
    if record is not None:
        folded = load_folded(run, record, stream=stream)
        original = _load_original(record, run, stream or stream_original)
        return AnalyzedModel(folded.within(card.context), original.within(card.context))
    loaded = _load_given(card.source, run, stream).within(card.context)
    if loaded.card.sha256 != card.sha256 and run.folded.is_dir() and not is_there(run.fold):
        msg = (
            f"{run.fold}, which tells how {run.folded} was made, is gone; run the same 'qplan analyze' again: "
            "measurements are kept"
        )
        raise DamagedArtifactError(msg)
    if loaded.card.sha256 != card.sha256:
        msg = f"{card.source} has changed since {run.sensitivity} was made; run 'qplan analyze' with --restart"
        raise StaleArtifactError(msg)
    if loaded.card.tensors != card.tensors:
        msg = (
            f"{run.sensitivity} was made by a version of qplan that saw other tensors in {card.source}, such as a head "
            "apart from an embedding that equals it; run 'qplan analyze' with --restart"
        )
        raise StaleArtifactError(msg)
    return AnalyzedModel(loaded, loaded)


def load_folded(run: RunFolder, record: FoldRecord, device: str = "cpu", *, stream: bool | None = None) -> LoadedModel:
    """The folded model, with the original's name as its source.

    Raises:
        StaleArtifactError: its weights or its tokenizer have changed.
        DamagedArtifactError: it cannot be loaded.
    """
    with folded_copy(run):
        folded = load_model(str(run.folded), device=device, stream=stream)
    beside = record.tokenizer_sha256
    if folded.card.sha256 != record.folded_sha256 or beside not in {None, sha256_beside_model(run.folded)}:
        msg = f"{run.folded} has changed since it was made; run 'qplan analyze' with --restart"
        raise StaleArtifactError(msg)
    return replace(folded, card=replace(folded.card, source=record.original))


@contextmanager
def folded_copy(run: RunFolder) -> Iterator[None]:
    """Tell of what cannot be read in the folded model that it is qplan's own, and how it is made again.

    Raises:
        DamagedArtifactError: the block found something that no model has.
    """
    try:
        yield
    except InputError as error:
        msg = f"{run.folded}, the folded model, is not as qplan wrote it: run 'qplan analyze' with --restart ({error})"
        raise DamagedArtifactError(msg) from None


def _load_original(record: FoldRecord, run: RunFolder, stream: bool) -> LoadedModel:  # noqa: FBT001
    """The model before folding.

    Raises:
        StaleArtifactError: its weights have changed.
    """
    original = _load_given(record.original, run, stream)
    if original.card.sha256 != record.original_sha256:
        msg = f"{record.original} has changed since its weights were folded; run 'qplan analyze' with --restart"
        raise StaleArtifactError(msg)
    return original


def _load_given(source: str, run: RunFolder, stream: bool) -> LoadedModel:  # noqa: FBT001
    """The model that a run was made from, as its artifacts name it.

    Raises:
        InputError: it cannot be loaded. Runs of older versions may name it from another working folder.
    """
    try:
        return load_model(source, stream=stream)
    except InputError as error:
        if Path(source).expanduser().is_dir():
            raise
        msg = f"{run.folder} was made from {source}: {error}. If that was a folder, run this where 'qplan analyze' ran"
        raise InputError(msg) from None
