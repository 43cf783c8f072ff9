"""Which weights an exporter need not read, and the memory that an export takes then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qplan.cost.free import held_memory
from qplan.errors import InputError
from qplan.model.headers import TensorHeader, read_header
from qplan.model.inert import CONFIG_FILE
from qplan.model.registry import ARCHITECTURES
from qplan.model.source import read_config, weight_files

LEFT_OUT_FILE = "weights-left-out"
"""What the exporter's process makes in its working folder as soon as it leaves a matrix out, or sees that it can't."""

_BASE_BYTES = 500_000_000
"""Libraries, the graph and its conversion: 0.5 GB were measured."""

_EMBEDDING_COPIES = 4 + 2
"""Bytes a weight of the exporter's copies of the embedding: as floats for its graph, and as it is stored, then as
bfloat16 for its file. 3.9 GB were measured for the 545 million of Qwen2.5-7B."""

_HEAD_COPIES = 4
"""The same of a head that it compares with the embedding."""

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Kept:
    """The matrices of a checkpoint whose values the exporter needs."""

    modules: tuple[str, ...]
    """Last parts of the paths of their modules."""
    peak_bytes: int
    """Peak memory of an export that reads no others."""


def kept_of(model_dir: Path) -> Kept | None:
    """What the exporter must read of a model; None for architectures whose matrices qplan does not know.

    The embedding, which it writes; and the head, unless it is seen to differ from that: the exporter ties equal ones.

    Raises:
        InputError: no config, or weights that can't be read.
    """
    architecture = ARCHITECTURES.get(str(read_config(model_dir / CONFIG_FILE).get("model_type")))
    if architecture is None:
        return None
    import torch  # noqa: PLC0415 - slow, and not for those who only ask for the memory

    from qplan.model.checkpoint import Checkpoint  # noqa: PLC0415

    checkpoint = Checkpoint.open(model_dir)
    headers = checkpoint.headers
    embedding, head = (_named(headers, path) for path in (architecture.embedding, architecture.head))
    if embedding is None:
        return None
    weights = math.prod(headers[embedding].shape)
    peak = _BASE_BYTES + max(_EMBEDDING_COPIES * weights, 4 * weights + _stored_bytes(headers[embedding]))
    # the exporter compares what it loaded, in half precision
    if head is None or not checkpoint.equal(embedding, head, types=(torch.bfloat16, torch.float16)):
        return Kept((_last(architecture.embedding),), peak)
    peak += _stored_bytes(headers[head]) + _HEAD_COPIES * math.prod(headers[head].shape)
    return Kept((_last(architecture.embedding), _last(architecture.head)), peak)


def whole_bytes(model_dir: Path) -> int:
    """Peak memory of an export that reads every weight: the model as it is stored, and copies of embedding and head.

    Raises:
        InputError: weights that can't be read.
    """
    headers = [tensor for path in weight_files(model_dir) for tensor in read_header(path).values()]
    largest = max((math.prod(tensor.shape) for tensor in headers), default=0)
    return _BASE_BYTES + sum(map(_stored_bytes, headers)) + _EMBEDDING_COPIES * largest


def check_fits(what: str, need: int, limit: int | None, remedy: str) -> None:
    """Refuse what takes more memory than the user allows, beside what this process holds.

    Args:
        what: what takes it.
        need: bytes that it takes in a process of its own.
        limit: bytes allowed; None for no limit.
        remedy: what helps besides a higher limit.

    Raises:
        InputError: it takes more.
    """
    if limit is None:
        return
    left = max(0, limit - held_memory())
    if need > left:
        msg = (
            f"{what} takes about {need / 1e9:.1f} GB of memory, and --max-memory {limit / 1e9:.1f}GB leaves "
            f"{left / 1e9:.1f} GB beside qplan itself; raise it, {remedy}"
        )
        raise InputError(msg)


def _named(headers: Mapping[str, TensorHeader], path: str) -> str | None:
    """Name of a module's weight in a checkpoint, which may leave out the prefix that all modules but the head share."""
    names = (f"{path}.weight", f"{path.partition('.')[2]}.weight")
    return next((name for name in names if name in headers), None)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _stored_bytes(tensor: TensorHeader) -> int:
    return math.prod(tensor.shape) * _ITEM_BYTES.get(tensor.dtype, 4)
