"""Places for the names of points in a figure, so that none is printed over another."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from qplan.report import svg

_WIDTH, _WIDE_WIDTH, _HEIGHT = 10.0, 17.0, 16.0
"""Size of a character of a name, and of a Chinese one, px, at the size that narrow pages set."""

_AROUND: tuple[tuple[float, float, str | None], ...] = (
    (10, -5, None),
    (-10, -5, "end"),
    (10, 16, None),
    (-10, 16, "end"),
    (0, -12, "middle"),
    (0, 23, "middle"),
    (10, -21, None),
    (-10, -21, "end"),
    (10, 32, None),
    (-10, 32, "end"),
)
"""Where a name may stand beside its point, the best place first."""


@dataclass(frozen=True)
class Box:
    """A part of a figure, px."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        apart = self.right <= other.left or other.right <= self.left
        return not apart and self.top < other.bottom and other.top < self.bottom

    def within(self, other: Box) -> bool:
        """Whether this lies in the other."""
        inside = self.left >= other.left and self.right <= other.right
        return inside and self.top >= other.top and self.bottom <= other.bottom


@dataclass
class Labels:
    """Names that were placed, and what they must leave free."""

    area: Box
    """Where they may stand."""
    taken: list[Box] = field(default_factory=list)

    def keep_free(self, points: Sequence[tuple[float, float]], radius: float) -> None:
        """Have no name stand on points."""
        self.taken += [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points]

    def place(self, x: float, y: float, name: str, *, class_: str, below: bool = False) -> Markup:
        """A name beside its point; where every place is taken, at the one that meets least.

        Args:
            x: of the point.
            y: of the point.
            name: to be written.
            class_: of the text.
            below: whether places below the point are better than those above.
        """
        around = sorted(_AROUND, key=lambda place: place[1] < 0) if below else _AROUND
        boxes = [_box(x + dx, y + dy, name, anchor) for dx, dy, anchor in around]
        met = [sum(box.meets(other) for other in self.taken) + 100 * (not box.within(self.area)) for box in boxes]
        best = met.index(min(met))
        self.taken.append(boxes[best])
        dx, dy, anchor = around[best]
        return svg.text(x + dx, y + dy, name, class_=class_, anchor=anchor)


def _box(x: float, y: float, name: str, anchor: str | None) -> Box:
    width = sum(_WIDE_WIDTH if unicodedata.east_asian_width(letter) in "WF" else _WIDTH for letter in name)
    left = {None: x, "middle": x - width / 2, "end": x - width}[anchor]
    return Box(left, y - _HEIGHT + 3, left + width, y + 3)
