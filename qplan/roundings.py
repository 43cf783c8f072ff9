"""The roundings: the only list of them. A new one is its own file in `qplan.quantize` and an entry here.

Names and help are read at every key press of a completion: nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from qplan.errors import InputError


@dataclass(frozen=True)
class Method:
    """One way to choose a tensor's integers."""

    name: str
    """In options and tables."""
    function: str
    """``module:name`` of ``f(weight [out, in], fmt)``, or of ``f(weight, fmt, curvature)`` if it fits."""
    fits: bool
    """Whether it fits to calibration tokens."""
    automatic: bool
    """Whether ``auto`` may choose it."""
    help: str
    """What it does, in a few words after its name."""


_LIST = (
    Method("gptq", "qplan.quantize.gptq:gptq", fits=True, automatic=True, help="feeds errors back and refines"),
    Method("search", "qplan.quantize.range_search:range_search", fits=True, automatic=True, help="finds ranges"),
    Method("hqq", "qplan.quantize.hqq:hqq", fits=False, automatic=False, help="is the method of MNN's `--hqq`"),
    Method("rtn", "qplan.quantize.rtn:rtn", fits=False, automatic=True, help="rounds to nearest like MNN's exporter"),
)

METHODS = {method.name: method for method in _LIST}
"""By name."""

CANDIDATES = tuple(method.name for method in _LIST if method.automatic)
"""What ``auto`` chooses from: for every output feature what loses least on tokens that it was not fitted to."""

ROUNDINGS = ("auto", *METHODS)
"""What a user may ask for."""

HELP = f"auto chooses between {', '.join(CANDIDATES[:-1])} and {CANDIDATES[-1]}; " + ", ".join(
    f"{method.name} {method.help}" for method in _LIST
)
"""Of the option ``--rounding``."""


def needs_tokens(rounding: str) -> bool:
    """Whether a rounding, ``auto`` included, fits to calibration tokens."""
    return rounding not in METHODS or METHODS[rounding].fits


def check_rounding(name: str) -> None:
    """Refuse what is no rounding.

    Raises:
        InputError: another name; says which there are.
    """
    if name not in ROUNDINGS:
        msg = f"rounding {name!r} is unknown; use one of {', '.join(ROUNDINGS)}"
        raise InputError(msg)
