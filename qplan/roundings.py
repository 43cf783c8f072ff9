"""The one list of roundings. A new one is a file of its own in `qplan.rounding` and an entry here.

Shell completion reads names and help at every key press, so nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from qplan.settings import one_of


@dataclass(frozen=True)
class Method:
    """One way to choose a tensor's integers."""

    name: str
    """Name in options and tables."""
    function: str
    """``module:name`` of ``f(weight [out, in], fmt)``, or of ``f(weight, fmt, curvature)`` if `fits`."""
    fits: bool
    """Whether it is fitted to calibration tokens."""
    automatic: bool
    """Whether ``auto`` may choose it."""
    help: str
    """What it does, in a few words after its name."""
    whole: bool = False
    """Whether the integers of a row depend on all others, so that a matrix cannot be rounded some rows at a time."""


_LIST = (
    Method("gptq", "qplan.rounding.gptq:gptq", fits=True, automatic=True, help="feeds errors back and refines"),
    Method("search", "qplan.rounding.range_search:range_search", fits=True, automatic=True, help="finds ranges"),
    Method("hqq", "qplan.rounding.hqq:hqq", fits=False, automatic=False, help="is HQQ as published, for each block"),
    Method(
        "llmexport-hqq",
        "qplan.rounding.exported_hqq:exported_hqq",
        fits=False,
        automatic=False,
        help="stores what `llmexport --hqq` does",
        whole=True,
    ),
    Method("rtn", "qplan.rounding.rtn:rtn", fits=False, automatic=True, help="rounds to nearest like MNN's exporter"),
)

METHODS = {method.name: method for method in _LIST}
"""Every rounding by name."""

CANDIDATES = tuple(method.name for method in _LIST if method.automatic)
"""Roundings that ``auto`` chooses from: for every output feature, the one that loses least on tokens that it was not
fitted to."""

ROUNDINGS = ("auto", *METHODS)
"""Values of the option ``--rounding``."""

HELP = f"auto chooses between {', '.join(CANDIDATES[:-1])} and {CANDIDATES[-1]}; " + ", ".join(
    f"{method.name} {method.help}" for method in _LIST
)
"""Help text of the option ``--rounding``."""


def needs_tokens(rounding: str) -> bool:
    """Whether a rounding, which may be ``auto``, is fitted to calibration tokens."""
    return rounding not in METHODS or METHODS[rounding].fits


def can_be_tuned(rounding: str) -> bool:
    """Whether integers can be fitted to a plan as a whole with the same rounding: error feedback, from moments."""
    return rounding in {"auto", "gptq"}


def check_rounding(name: str) -> None:
    """Refuse an unknown rounding.

    Raises:
        InputError: no such rounding; lists those that exist.
    """
    one_of("rounding", name, ROUNDINGS)
