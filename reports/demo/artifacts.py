"""Writes the files of the demo model so that a reader never sees a half-written one."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from reports.demo.tokenizer import save_tokenizer

# Left out of the saved configurations: they hold the paths that the files once had.
_PLACE_KEYS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
_FILE_MODE = 0o644


def sha256_of(text: str) -> str:
    """Returns the hexadecimal SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text.encode())
        temporary.chmod(_FILE_MODE)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Writes a JSON file atomically, creating its folder."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_model(folder: Path, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Replaces a model folder by a newly written one.

    Args:
        folder: The model folder; an older one of that name is removed once the new one is complete.
        model: The model, with its weights in the type to store them in.
        tokenizer: The model's tokenizer.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        fresh = staging / "new"
        fresh.mkdir()
        model.save_pretrained(fresh)
        save_tokenizer(tokenizer, fresh)
        for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            _drop_place_keys(fresh / name)
        for file in fresh.iterdir():
            file.chmod(_FILE_MODE)
        # Two renames: a non-empty folder cannot be replaced in one step.
        if folder.exists():
            folder.rename(staging / "old")
        fresh.rename(folder)
    finally:
        shutil.rmtree(staging)


def _drop_place_keys(path: Path) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {key: item for key, item in value.items() if key not in _PLACE_KEYS})
