"""Reads datasets of the Hugging Face hub or of a local folder, record by record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qplan.calibration.record import Record
from qplan.errors import InputError

SPLITS = ("train", "validation", "test")
"""Preferred splits, first to last."""


def read_dataset(source: str, *, known: Iterable[str] = ()) -> tuple[Iterator[Record], str, str | None]:
    """Open ``id``, ``id:config``, ``id:config:split`` or ``id::split``.

    Returns:
        its records, a description with config and split, and its license if it states one.

    Raises:
        InputError: no such dataset, config or split.
    """
    name, config, split = _parse(source)
    if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
        loaded, used = _from_disk(name, split)
    else:
        if not Path(name).is_dir():
            _check_reachable(name, known)
        loaded, used = _streamed(name, config, split, known)
    described = ":".join([name, config or "", used])
    license_ = getattr(getattr(loaded, "info", None), "license", None)
    return _records(described, loaded), described, license_ or None


def _parse(source: str) -> tuple[str, str | None, str | None]:
    if Path(source).expanduser().is_dir():
        folder = Path(source).expanduser()
        # `datasets` names a dataset after its folder
        return str(folder.resolve() if folder.name in ("", "..") else folder), None, None
    name, *rest = source.split(":")
    if len(rest) > 2 or not name:
        msg = f"dataset {source!r} is not understood; write id, id:config or id:config:split"
        raise InputError(msg)
    config, split = ([*rest, "", ""])[:2]
    return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name, config or None, split or None


def _choose(name: str, available: Iterable[str], wanted: str | None) -> str:
    splits = [str(split) for split in available]
    if not splits:
        msg = f"dataset {name} has no splits; give one that has data"
        raise InputError(msg)
    if wanted is None:
        return next((split for split in SPLITS if split in splits), splits[0])
    if wanted not in splits:
        msg = f"dataset {name} has no split {wanted!r}; it has {', '.join(splits)}"
        raise InputError(msg)
    return wanted


def _from_disk(name: str, split: str | None) -> tuple[Any, str]:
    import datasets  # noqa: PLC0415 - takes seconds, and a text file needs none of it

    try:
        stored = datasets.load_from_disk(name)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"{name!r} is a saved dataset that cannot be opened: {first}"
        raise InputError(msg) from None
    if not isinstance(stored, datasets.DatasetDict):
        return stored, str(stored.split or split or "")
    used = _choose(name, stored, split)
    return stored[used], used


def _check_reachable(name: str, known: Iterable[str]) -> None:
    """Refuse a dataset where the hub cannot be reached; `datasets` would try for half a minute, and say so each time.

    Raises:
        InputError: it cannot.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - takes seconds, and a text file needs none of it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        snapshot_download(name, repo_type="dataset", allow_patterns=[])
    except LocalEntryNotFoundError:
        msg = (
            f"{_none_of(name, known)}, and the hub cannot be reached to look for a dataset; check the path, or go "
            "online and retry"
        )
        raise InputError(msg) from None
    except (HfHubHTTPError, HFValidationError):  # what the hub says, or would say, is told with the data
        return


def _none_of(name: str, known: Iterable[str]) -> str:
    sets = ", ".join(known) or "none"
    return f"{name!r} is neither a file, a folder with data files, nor a set in calib/ ({sets})"


def _streamed(name: str, config: str | None, split: str | None, known: Iterable[str]) -> tuple[Any, str]:
    import datasets  # noqa: PLC0415 - takes seconds, and a text file needs none of it

    try:
        used = _choose(name, datasets.get_dataset_split_names(name, config), split)
        return datasets.load_dataset(name, config, split=used, streaming=True), used
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if Path(name).is_dir():
            msg = f"folder {name!r} holds no data file that can be read ({first}); give a .txt, .jsonl or .parquet file"
            raise InputError(msg) from None
        msg = f"{_none_of(name, known)}, and cannot be opened as a dataset: {first}"
        raise InputError(msg) from None


def _records(described: str, loaded: Iterable[dict[str, Any]]) -> Iterator[Record]:
    import pyarrow as pa  # noqa: PLC0415 - with datasets
    from datasets.exceptions import DatasetsError  # noqa: PLC0415 - takes seconds, and is loaded by now

    number = 0
    try:
        for number, values in enumerate(loaded, 1):  # noqa: B007 - also where the next one cannot be read
            yield Record(f"dataset {described}, row {number - 1}", values)
    except (OSError, ValueError, OverflowError, TypeError, RuntimeError, pa.ArrowException, DatasetsError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"dataset {described} cannot be read after {number} rows: {first}"
        raise InputError(msg) from None
