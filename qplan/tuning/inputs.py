"""What linears of one layer are given, without computing what comes behind them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from qplan.model.layerwise import run_layer
from qplan.model.load import LoadedModel
from qplan.rounding.moments import without_logits


class _SeenError(Exception):
    """Ends a pass once what was wanted of it is there."""


def input_of(loaded: LoadedModel, index: int, batch: Tensor, given: object, linear: nn.Linear) -> Tensor:
    """The input ``[rows, seq_len, in_features]`` of a linear; nothing behind it is computed.

    Args:
        loaded: the model, as it is to compute.
        index: of the decoder layer; their number for the head.
        batch: token ids, int64 ``[rows, seq_len]``.
        given: what the layer before returned.
        linear: of the layer.
    """
    found: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _SeenError

    with _hooked({linear}, see), torch.no_grad():
        try:
            run_layer(loaded, index, batch, given)
        except _SeenError:
            return found[0]
    msg = f"layer {index} ran without {linear}"
    raise RuntimeError(msg)


def in_order(
    loaded: LoadedModel, index: int, batch: Tensor, given: object, linears: Collection[nn.Linear]
) -> list[list[nn.Linear]]:
    """Linears of a layer in the order in which they run, those that are given the same tensor together."""
    groups: list[tuple[Tensor, list[nn.Linear]]] = []

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        same = next((members for value, members in groups if value is args[0]), None)
        if same is None:
            groups.append((args[0], same := []))
        same += [one for one in linears if one is module]

    with _hooked(linears, see), without_logits(loaded), torch.no_grad():
        run_layer(loaded, index, batch, given)
    return [members for _, members in groups]


@contextmanager
def _hooked(linears: Collection[nn.Linear], see: Callable[[nn.Module, tuple[Tensor, ...]], None]) -> Iterator[None]:
    with ExitStack() as stack:
        for linear in linears:
            stack.callback(linear.register_forward_pre_hook(see).remove)
        yield
