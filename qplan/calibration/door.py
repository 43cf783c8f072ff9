"""Refuses a text before torch is loaded: what is missing, empty, in another encoding, or without any text."""

from __future__ import annotations

from pathlib import Path

from qplan.calib_sets import calib_sets
from qplan.calibration import files
from qplan.calibration.files import READERS, records_of
from qplan.calibration.record import MESSAGES, field_of
from qplan.errors import InputError


def check_text(source: str, option: str = "") -> None:
    """Refuse a text that is missing or unusable. A file is read for that; datasets and chat templates come later.

    Args:
        source: as for `qplan.calibration.load_text`.
        option: the option that it was given with, for the message.

    Raises:
        InputError: a file that does not exist, is none, is not understood, or holds no text.
    """
    given = f"{option} {source}".strip()
    kinds = ", ".join(READERS)
    if not source.strip():
        msg = f"{given or 'the text'} is empty; give a {kinds} file, a dataset, or one of {', '.join(calib_sets())}"
        raise InputError(msg)
    try:
        path = Path(source).expanduser()
        is_file, exists = path.is_file(), path.exists()
    except (OSError, RuntimeError) as error:  # a name that no file system takes, or the home of nobody
        msg = f"{given:.100} cannot be a file or a dataset: {getattr(error, 'strerror', None) or error}"
        raise InputError(msg) from None
    if is_file and path.suffix.lower() not in READERS:
        msg = f"{given}: extension {path.suffix!r} is not understood; use {kinds} or a dataset folder"
        raise InputError(msg)
    if not exists and path.suffix.lower() in READERS:
        msg = f"{given} does not exist; give a {kinds} file, a dataset, or one of {', '.join(calib_sets())}"
        raise InputError(msg)
    if exists and not is_file and not path.is_dir():
        msg = f"{given} is neither a file nor a folder; give a {kinds} file, or a dataset folder"
        raise InputError(msg)
    if is_file:
        _check_content(path)


def _check_content(path: Path) -> None:
    """Read a file as far as its text will be used, without rendering chats.

    Raises:
        InputError: what cannot be read, or no text in it.
    """
    total, empty = 0, True
    for record in records_of(path):
        field, value = field_of(record)
        total += len(value if field != MESSAGES else str(value))
        empty = empty and field != MESSAGES and not value.strip()
        if total >= files.MAX_CHARACTERS:
            break
    if empty:
        refuse_empty(str(path))


def refuse_empty(source: str) -> None:
    """Say that a text has nothing in it.

    Raises:
        InputError: always.
    """
    msg = f"{source} holds no text; give a source with at least a few thousand tokens"
    raise InputError(msg)
