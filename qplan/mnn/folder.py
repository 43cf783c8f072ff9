"""A folder that appears whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qplan.errors import InputError


@contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty draft next to ``out`` that becomes ``out`` only if the block ends well.

    Args:
        out: the folder to make.
        replace: whether a folder that is there already gives way, at the last moment.

    Raises:
        InputError: ``out`` exists and is not an empty folder.
    """
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not (replace and out.is_dir()):
        msg = f"{out} already exists; remove it, or choose another folder"
        raise InputError(msg)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        draft = Path(temporary) / "draft"
        draft.mkdir()
        yield draft
        if out.exists():
            out.rename(Path(temporary) / "replaced")
        draft.rename(out)
