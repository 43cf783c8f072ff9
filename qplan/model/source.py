"""Finds the folder of a model that the user named, and the hash that identifies the model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qplan.artifact import parse_json, read_bounded, sha256_files
from qplan.errors import InputError
from qplan.model.bucket import fetch_url, is_url
from qplan.model.headers import refuse_pointer

EMBEDDING_SCALE_FILE = "embedding_scale.npy"
"""File of a model whose tied head is folded, see `qplan.model.embedding_scale`; other models have none."""

_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Configuration, weights and tokenizer; no pickles."""

MOST_JSON_BYTES = 256 << 20
"""The index of the largest checkpoints has some ten million."""

INDEX_FILE = "model.safetensors.index.json"
"""Which file of several holds which tensor."""

WEIGHTS_FILE = "model.safetensors"
"""All of them in one."""

_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def local_folder(source: str) -> Path | None:
    """The folder that a user's word for a model names; None if it has the form of a hub id or of a bucket's URL.

    Raises:
        InputError: none of these.
    """
    if is_url(source):
        return None
    if not source.strip():
        msg = "the model has no name; give the folder that holds config.json, or a hub id such as Qwen/Qwen2.5-0.5B"
        raise InputError(msg)
    folder = Path(source).expanduser()
    try:
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except OSError as error:  # above all a name longer than file systems hold
        msg = f"{source[:80]}{'...' * (len(source) > 80)} cannot name a folder: {error.strerror}"  # noqa: PLR2004
        raise InputError(msg) from None
    if is_folder:
        return folder
    if is_file or source.startswith((".", "/", "~")):
        msg = f"{source} is not a folder; give the folder that holds config.json, or a hub id such as Qwen/Qwen2.5-0.5B"
        raise InputError(msg)
    if _HUB_ID.match(source) is None:
        msg = f"{source!r} is neither an existing folder nor a hub id (owner/name)"
        raise InputError(msg)
    return None


def lasting(source: str) -> str:
    """A user's word for a model as it holds in any working folder: a folder's absolute path, or the hub id.

    Raises:
        InputError: neither a folder nor a hub id.
    """
    folder = local_folder(source)
    if folder is None:
        return source
    # a link that people named, such as models/current, keeps its name
    return str(folder.parent.resolve() / folder.name if folder.name not in ("", "..") else folder.resolve())


def fetch(source: str) -> Path:
    """The folder of a model: itself if it exists, else a snapshot from the Hugging Face hub or from a bucket.

    Raises:
        InputError: neither a folder nor a hub id, or the hub cannot be reached and the cache does not hold it.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow, and folders need none of it
    from huggingface_hub.errors import (  # noqa: PLC0415
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    folder = local_folder(source)
    if folder is not None:
        return folder.resolve()
    if is_url(source):
        return fetch_url(source, _FILES)
    try:
        return Path(snapshot_download(source, allow_patterns=list(_FILES)))
    except HFValidationError:
        msg = f"{source!r} is neither an existing folder nor a hub id (owner/name)"
        raise InputError(msg) from None
    except LocalEntryNotFoundError:
        msg = f"{source!r} is not a local folder and the hub cannot be reached; check the path, or go online and retry"
        raise InputError(msg) from None
    except (HfHubHTTPError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"{source!r} cannot be fetched from the hub: {first} Check its name and, if it is gated, your login"
        raise InputError(msg) from None


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model that transformers reads: one by its plain name, else those of the index.

    Raises:
        InputError: no weights, only pickled ones, shards without an index, or an index that names a file that is not
            there.
    """
    whole = folder / WEIGHTS_FILE
    if whole.exists() or whole.is_symlink():
        # transformers reads no other then: neither Mistral's consolidated.safetensors, nor shards of an earlier model
        return (whole,)
    index = folder / INDEX_FILE
    if index.is_file():
        named = read_config(index).get("weight_map")
        names = {str(name) for name in named.values()} if isinstance(named, dict) else set()
        if not names:
            msg = f"{index} maps no weights to files; download the model again"
            raise InputError(msg)
        outside = sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors"))
        if outside:
            msg = f"{index} names {outside[0]!r}, which is no safetensors file in its folder; download the model again"
            raise InputError(msg)
        paths = {folder / name for name in names}
        missing = sorted(path.name for path in paths if not path.is_file())
        if missing:
            msg = f"{folder}: {index.name} names {', '.join(missing[:3])}, which is not there; download the model again"
            raise InputError(msg)
        return tuple(sorted(paths))
    found = tuple(sorted(folder.glob("*.safetensors")))
    shards = [path.name for path in found if _SHARD.search(path.name)]
    if shards:
        msg = f"{folder} holds {shards[0]} without {INDEX_FILE}, which says what is in which; download that as well"
        raise InputError(msg)
    if found:
        msg = (
            f"{folder} holds {found[0].name}, and neither {WEIGHTS_FILE} nor {INDEX_FILE}, where transformers looks "
            "for weights; rename it if these are the model's"
        )
        raise InputError(msg)
    pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
    why = "only pickled weights; convert them with save_pretrained" if pickled else "no *.safetensors files"
    msg = f"{folder} holds {why}"
    raise InputError(msg)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: no such file or not a JSON object.
    """
    if not path.exists():
        msg = f"{path.parent} has no {path.name}; give the folder of a Hugging Face causal language model"
        raise InputError(msg)
    try:
        content = read_bounded(path, MOST_JSON_BYTES)
        refuse_pointer(path, content)
        value = parse_json(content)
    except InputError as error:
        msg = f"{path} cannot be used: {error}"
        raise InputError(msg) from None
    if not isinstance(value, dict):
        msg = f"{path} holds a JSON {type(value).__name__}, expected an object"
        raise InputError(msg)
    return value


def sha256_model(folder: Path) -> str:
    """Hash of the configuration and the weight files' content; the path does not enter."""
    scale = folder / EMBEDDING_SCALE_FILE
    return sha256_files((folder / "config.json", *weight_files(folder), *((scale,) if scale.is_file() else ())))


def sha256_beside_model(folder: Path) -> str:
    """Hash of the files that `sha256_model` leaves out: tokenizer, chat template, generation settings."""
    weights = weight_files(folder)
    paths = [path for path in folder.iterdir() if path.is_file() and path not in weights]
    return sha256_files(path for path in paths if path.name not in {"config.json", EMBEDDING_SCALE_FILE})
