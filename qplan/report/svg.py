"""Inline SVG by hand: escaped elements and a logarithmic axis. Colors come from the page's style sheet."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape


def element(tag: str, *content: str, **attributes: str | float | None) -> Markup:
    """One element; content and values are escaped unless they are Markup already.

    Attribute names lose a trailing underscore (``class_``) and write ``_`` as ``-``; None leaves one out.
    """
    pairs = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _plain(value))
        for name, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(part) for part in content)
    return Markup(f"<{tag}{pairs}>{inner}</{tag}>")  # noqa: S704 - both parts are escaped above


def _plain(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def text(
    x: float, y: float, content: str, *, class_: str = "", anchor: str | None = None, **data: str | None
) -> Markup:
    """A line of text; ``anchor`` is ``middle`` or ``end``, ``data`` are further attributes."""
    return element("text", content, x=float(x), y=float(y), class_=class_ or None, text_anchor=anchor, **data)


HEADROOM = 5.0
"""Room above a first line at y = 15, px: a narrow page sets it at 15 px, and Noto Sans CJK rises 1.16 em."""


def picture(
    width: float, height: float, label: str, *content: str, headroom: float = 0.0, **data: str | None
) -> Markup:
    """A figure of a fixed size in CSS pixels that print may shrink; ``label`` is for screen readers.

    ``headroom`` is room above y = 0, px; ``data`` are further attributes.
    """
    return element(
        "svg",
        *content,
        viewBox=f"0 {_plain(0.0 - headroom)} {_plain(float(width))} {_plain(height + headroom)}",
        width=float(width),
        height=height + headroom,
        role="img",
        aria_label=label,
        **data,
    )


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis between two places on the screen."""

    low: float
    high: float
    start: float
    """Place of ``low``, px."""
    end: float
    """Place of ``high``, px."""

    @classmethod
    def around(cls, values: list[float], start: float, end: float, decades: float = math.inf) -> LogAxis:
        """An axis with some room around the positive ``values``, of at most their upper ``decades``."""
        positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
        high = max(positive)
        low = min(value for value in positive if value >= high / 10**decades)
        spread = max((high / low) ** 0.12, 1.25)
        return cls(low / spread, high * spread, start, end)

    def place(self, value: float) -> float:
        """Where a value is; zero is at the start."""
        if value <= 0:
            return self.start
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def holds(self, value: float) -> bool:
        """Whether a value is on the axis; others are drawn at its ends and should say so."""
        return self.low <= value <= self.high

    def ticks(self) -> tuple[float, ...]:
        """Powers of ten; with 2 and 5 between them where there would be fewer than three."""
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
            found = tuple(s * 10.0**e for e in exponents for s in steps if self.low <= s * 10.0**e <= self.high)
            if len(found) >= 3:
                break
        return found
