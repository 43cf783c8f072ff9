"""Colors of widths and losses, in both themes, with text that can be read on them."""

from __future__ import annotations

from qplan.formats import WIDTHS

_ANCHORS = {
    2: "#9a3014",
    3: "#d2642d",
    4: "#f0a35e",
    5: "#f6d9a0",
    6: "#c3dde0",
    8: "#64a5c8",
    16: "#27548a",
    32: "#16325a",
}
"""Colors of widths: few bits are warm, many are cool; distinguishable with any common color blindness."""

HEAT_LIGHT = ("#fae8df", "#f9d2c5", "#f6b0a9", "#e98094", "#d05288", "#a72f80", "#781d73", "#4a155d", "#260c40")
HEAT_DARK = ("#252230", "#3a2550", "#5c2670", "#852b7c", "#b0397d", "#d8536f", "#f0785e", "#fbab72", "#fde3ae")
"""Colors of losses from small to large; small ones are close to the page's background in either theme."""

HEAT_STEPS = 24
# pure black: only with it does every color have an ink of contrast 4.5 or more
_INK, _PAPER = "#000000", "#ffffff"


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def luminance(color: str) -> float:
    """Relative luminance of ``#rrggbb``, 0 to 1 (WCAG 2.2, "relative luminance")."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(color))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colors, 1 to 21 (WCAG 2.2, "contrast ratio")."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def text_on(fill: str) -> str:
    """The ink that reads better on a fill: black or white."""
    return max((_INK, _PAPER), key=lambda ink: contrast(ink, fill))


def ramp(anchors: tuple[str, ...], steps: int = HEAT_STEPS) -> tuple[str, ...]:
    """``steps`` colors along the anchors, both ends included."""
    colors = []
    for step in range(steps):
        place = step * (len(anchors) - 1) / (steps - 1)
        left = min(int(place), len(anchors) - 2)
        colors.append(_mix(anchors[left], anchors[left + 1], place - left))
    return tuple(colors)


def _mix(first: str, second: str, share: float) -> str:
    """A color ``share`` of the way from the first to the second."""
    pairs = zip(_channels(first), _channels(second), strict=True)
    return "#{:02x}{:02x}{:02x}".format(*(round(a + (b - a) * share) for a, b in pairs))


def _fill(bits: int) -> str:
    """A width's color: its own, or a mixture of its neighbors'."""
    if bits in _ANCHORS:
        return _ANCHORS[bits]
    below, above = max(b for b in _ANCHORS if b < bits), min(b for b in _ANCHORS if b > bits)
    return _mix(_ANCHORS[below], _ANCHORS[above], (bits - below) / (above - below))


BITS = {bits: _fill(bits) for bits in (*WIDTHS, 32)}
"""Fill color of a width."""
