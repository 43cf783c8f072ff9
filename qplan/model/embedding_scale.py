"""A factor for every channel of looked-up rows, so that a tied head can have column scales of its own.

Head and embedding are one matrix. Multiplying its columns by ``s`` and dividing the final norm by ``s`` keeps the
logits, but looks up ``s`` times the embedding; a multiplication by ``1 / s`` after the lookup, ``hidden`` numbers per
token, restores it. Without that factor no scale and no rotation can be folded into a tied head: if ``M = W D Q / g``
is stored (``D`` the final norm, ``g`` the new one), lookups bring the stream into the basis ``Q' D / g``, and the norms
of the layers allow that only if it is orthogonal, so ``g`` is a permutation of ``D`` and ``Q`` mixes equal gammas only.

The factor is a file of its own in the model folder; Hugging Face does not know it, `qplan.model.load` and
`qplan.mnn.graph.input_scale` do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qplan.artifact import atomic_path
from qplan.errors import InputError
from qplan.model.source import EMBEDDING_SCALE_FILE
from qplan.model.streamed import Streamed

_BUFFER = "qplan_scale"


def write_embedding_scale(folder: Path, scale: Tensor) -> None:
    """Write float32 ``[hidden]`` into a model folder."""
    with atomic_path(folder / EMBEDDING_SCALE_FILE) as temporary, temporary.open("wb") as stream:
        np.save(stream, scale.to(torch.float32).cpu().numpy(), allow_pickle=False)


def read_embedding_scale(folder: Path) -> Tensor | None:
    """float32 ``[hidden]``, None if the model has none.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / EMBEDDING_SCALE_FILE
    if not path.is_file():
        return None
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}; run 'qplan analyze' with --restart"
        raise InputError(msg) from None
    if values.dtype != np.float32 or values.ndim != 1 or not np.isfinite(values).all() or not (values > 0).all():
        msg = f"{path} holds {values.dtype} {values.shape}, expected positive float32 [hidden]; make the model again"
        raise InputError(msg)
    return torch.from_numpy(values)


def set_embedding_scale(embedding: nn.Embedding, scale: Tensor) -> None:
    """Multiply what an embedding looks up by ``scale [hidden]``, in place of an earlier factor.

    Raises:
        InputError: a scale of another width.
    """
    if scale.shape != (embedding.embedding_dim,):
        msg = f"the embedding scale has shape {tuple(scale.shape)}, expected ({embedding.embedding_dim},)"
        raise InputError(msg)
    fresh = embedding_scale(embedding) is None
    like = embedding.source if isinstance(embedding, Streamed) else embedding.weight
    embedding.register_buffer(_BUFFER, scale.to(like.device, like.dtype), persistent=False)
    if fresh:
        embedding.register_forward_hook(_multiply)


def embedding_scale(embedding: nn.Embedding) -> Tensor | None:
    """The factor ``[hidden]`` that `set_embedding_scale` gave an embedding."""
    return dict(embedding.named_buffers(recurse=False)).get(_BUFFER)


def _multiply(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG001 - a torch hook
    return output * module.get_buffer(_BUFFER)
