"""Says which folder is meant where somebody gives another one than that of an MNN model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qplan.errors import InputError
from qplan.mnn.files import CONFIG_FILE, GRAPH_FILE, LLM_CONFIG_FILE, WEIGHT_FILE
from qplan.run.folder import SENSITIVITY_FILE
from qplan.run.plan_folder import PLAN_FILE

_EXPECTED = f"give the folder of an MNN model, with {CONFIG_FILE} and {GRAPH_FILE}"

_DEPTH = 2
"""A run holds plans, a plan holds its model."""

_MOST_LOOKED_AT = 200
"""Folders of folders that are looked into."""


def refuse_other_folder(folder: Path) -> None:
    """Refuse what is clearly not an MNN model, however broken.

    Raises:
        InputError: no folder, or a plan, a run, a Hugging Face model, or a folder of other folders.
    """
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # above all a name longer than file systems hold
        msg = f"{str(folder)[:80]}... cannot name a folder: {error.strerror}; {_EXPECTED}"
        raise InputError(msg) from None
    if not is_folder:
        parent = folder.parent
        if folder.is_file() and _is_model(parent):
            msg = f"{folder} is a file of an MNN model; give its folder: {parent}"
        else:
            msg = f"{folder} is not a folder; {_EXPECTED}"
        raise InputError(msg)
    if _is_model(folder):
        return
    kind = _kind(folder)
    # a run holds the exporter's model too, which is not what people mean
    meant = sorted(_models_in(folder), key=lambda path: (path.name != "model", path))
    if kind is None and not meant:
        return  # whatever it is, the checks say what it lacks
    said = f"{folder} is {kind or 'not the folder of an MNN model'}"
    if meant:
        others = f" (or one of {len(meant) - 1} others in it)" if len(meant) > 1 else ""
        msg = f"{said}; the model is in {meant[0]}{others}"
    elif (folder / PLAN_FILE).is_file() or (folder / SENSITIVITY_FILE).is_file():
        msg = f"{said}, and no model is built in it; build one with 'qplan emit'"
    else:
        msg = f"{said}; check what is made of it: 'qplan analyze {folder}', then 'qplan emit'"
    raise InputError(msg)


def _is_model(folder: Path) -> bool:
    """Whether anything in a folder is a file that only MNN's models have."""
    return any((folder / name).exists() for name in (GRAPH_FILE, WEIGHT_FILE, LLM_CONFIG_FILE))


def _kind(folder: Path) -> str | None:
    if (folder / PLAN_FILE).is_file():
        return "the folder of a plan"
    if (folder / SENSITIVITY_FILE).is_file():
        return "the folder of a run"
    weights = any(path.suffix in {".safetensors", ".gguf"} for path in _few(folder))
    if weights or (folder / "tokenizer_config.json").is_file():
        return "a Hugging Face model, not yet an MNN model"
    return None


def _models_in(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    for path in _few(folder):
        if path.is_dir() and not path.is_symlink():
            if (path / GRAPH_FILE).is_file() and not path.name.startswith("."):
                yield path
            elif depth > 1:
                yield from _models_in(path, depth - 1)


def _few(folder: Path) -> list[Path]:
    """Some of what is in a folder; nothing if it can't be listed."""
    try:
        return [path for path, _ in zip(folder.iterdir(), range(_MOST_LOOKED_AT), strict=False)]
    except OSError:
        return []
