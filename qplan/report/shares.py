"""How much one number is of another, in words that claim no more digits than are known."""

from __future__ import annotations

from qplan.report import notation
from qplan.report.words import Words

SAME = 0.005
"""Most that two sizes called the same may differ, as a share."""

_NEAR = 0.07
"""Most that a loss may be off a fraction that has a name: losses on text are known no better."""


def is_same(share: float | None) -> bool:
    """Whether a quotient is one, as far as two decimals tell."""
    return share is not None and abs(share - 1) <= SAME


def loss_share(share: float | None, words: Words) -> str:
    """What stands before "the loss of": ``a tenth of``, or a quotient."""
    named = {
        2: words("half"),
        3: words("a third of"),
        4: words("a quarter of"),
        5: words("a fifth of"),
        10: words("a tenth of"),
        20: words("a twentieth of"),
        100: words("a hundredth of"),
    }
    near = (name for parts, name in named.items() if share is not None and abs(share * parts - 1) <= _NEAR)
    return next(near, notation.ratio(share))
