"""The torch model answering after fewer layers, as `qplan.mnn.graph.lens` lets the engine answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qplan.errors import InputError
from qplan.model.load import LoadedModel
from qplan.sensitivity.kept_logits import Logits


def lens_logits(loaded: LoadedModel, token_ids: Sequence[int]) -> tuple[Logits, ...]:
    """Logits ``[tokens, vocabulary]`` of the final norm and the head after 0, 1, ... all layers, of the model as it is.

    Raises:
        InputError: the model has no final norm to look through.
    """
    streams = _streams(loaded, token_ids)
    norm = loaded.model.get_submodule(loaded.architecture.final_norm)
    found = []
    for stream in streams:

        def before(_: nn.Module, args: tuple[Tensor, ...], stream: Tensor = stream) -> tuple[Tensor, ...]:
            return (stream, *args[1:])

        hook = norm.register_forward_pre_hook(before)
        try:
            logits: Logits = loaded.logits(torch.tensor([list(token_ids)]))[0].float().cpu().numpy()
        finally:
            hook.remove()
        found.append(logits)
    return tuple(found)


def _streams(loaded: LoadedModel, token_ids: Sequence[int]) -> list[Tensor]:
    """The residual stream before every layer, and after the last."""
    streams: list[Tensor] = []
    norm = loaded.model.get_submodule(loaded.architecture.final_norm)

    def keep(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        streams.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    hooks = [part.register_forward_pre_hook(keep, with_kwargs=True) for part in (*loaded.layers, norm)]
    try:
        loaded.logits(torch.tensor([list(token_ids)]))
    finally:
        for hook in hooks:
            hook.remove()
    if len(streams) != len(loaded.layers) + 1:
        msg = f"{len(streams)} residual streams in a model of {len(loaded.layers)} layers; they are not a plain stack"
        raise InputError(msg)
    return streams
