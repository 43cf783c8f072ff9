"""The roundings of `qplan.roundings` at work."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qplan.roundings import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from qplan.formats import QuantFormat
    from qplan.quantize.curvature import Curvature
    from qplan.quantize.stored import StoredTensor


def round_with(name: str, weight: Tensor, fmt: QuantFormat, curvature: Curvature | None = None) -> StoredTensor:
    """Store ``weight [out, in]`` in a format.

    Args:
        name: of a rounding, not ``auto``.
        weight: the matrix.
        fmt: any format; floats are stored as they are.
        curvature: of the tensor's inputs; needed by roundings that fit, ignored by others.

    Raises:
        TypeError: a rounding that fits, without a curvature.
    """
    method = METHODS[name]
    if method.fits and curvature is None:
        msg = f"rounding {name!r} without moments to fit to"
        raise TypeError(msg)
    given = (weight, fmt, curvature) if method.fits else (weight, fmt)
    return function_of(name)(*given)


def function_of(name: str) -> Callable[..., StoredTensor]:
    """The function of a rounding."""
    module, function = METHODS[name].function.split(":")
    found: Callable[..., StoredTensor] = getattr(import_module(module), function)
    return found
