"""Runs the roundings of `qplan.roundings` by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qplan.roundings import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from qplan.formats import QuantFormat
    from qplan.rounding.curvature import Curvature
    from qplan.rounding.stored import StoredTensor


def round_with(name: str, weight: Tensor, fmt: QuantFormat, curvature: Curvature | None = None) -> StoredTensor:
    """Store ``weight [out, in]`` in a format.

    Args:
        name: name of a rounding, not ``auto``.
        weight: the matrix.
        fmt: any format; floats are stored as they are.
        curvature: of the tensor's inputs; needed by roundings that are fitted to tokens, ignored by others.

    Raises:
        TypeError: a rounding that is fitted to tokens, without a curvature.
    """
    method = METHODS[name]
    if method.fits and curvature is None:
        msg = f"rounding {name!r} needs moments to fit to, but got none"
        raise TypeError(msg)
    given = (weight, fmt, curvature) if method.fits else (weight, fmt)
    return function_of(name)(*given)


def function_of(name: str) -> Callable[..., StoredTensor]:
    """The function of a rounding."""
    module, function = METHODS[name].function.split(":")
    found: Callable[..., StoredTensor] = getattr(import_module(module), function)
    return found
