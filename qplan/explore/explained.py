"""Why a tensor has its format, for people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from qplan.explore import html
from qplan.formats import QuantFormat
from qplan.report import notation
from qplan.report.literal import markdown

if TYPE_CHECKING:
    from qplan.planner.explain import Alternative, Explanation

MB = 1e6
"""Bytes in a megabyte."""


@dataclass(frozen=True, eq=False)
class Explained:
    """Why one tensor has its format."""

    explanation: Explanation
    """The planner's explanation, with prices in nats per byte."""

    @property
    def sentence(self) -> str:
        """The explanation in words."""
        return self.explanation.sentence

    @property
    def frame(self) -> pd.DataFrame:
        """One row per allowed format, bytes ascending.

        Columns: ``format, bytes, loss_nats, nats_per_mb`` (loss saved by a byte more, or added by a byte less, than
        planned, times 10^6), ``net_nats`` (loss plus bytes at the budget's price, above the cheapest format's),
        ``choice`` (``planned``, ``next best`` or empty).
        """
        found = self.explanation
        rows = [
            {
                "format": option.format.name,
                "bytes": option.bytes,
                "loss_nats": option.loss_nats,
                "nats_per_mb": per_mb(option, found.format),
                "net_nats": option.net_nats,
                "choice": self._choice(option),
            }
            for option in found.alternatives
        ]
        return pd.DataFrame(rows)

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        head = ["format", "bytes", "loss, nats", "nats per MB", "at the budget's price, nats", ""]
        found = self.explanation
        return head, [
            [
                option.format.name,
                f"{option.bytes:,}",
                notation.loss(option.loss_nats),
                "" if math.isnan(each := per_mb(option, found.format)) else notation.loss(each),
                f"+{notation.loss(option.net_nats)}" if option.net_nats else "cheapest",
                self._choice(option),
            ]
            for option in found.alternatives
        ]

    def _choice(self, option: Alternative) -> str:
        if option.format == self.explanation.format:
            return "planned"
        return "next best" if option == self.explanation.next_best else ""

    def __repr__(self) -> str:
        """Show why, and what the alternatives cost."""
        return html.text_card(self.sentence, (), html.text_table(*self._rows()))

    def _repr_html_(self) -> str:
        return html.card(self.explanation.tensor, [self.sentence], html.rows_table(*self._rows()))

    def _repr_markdown_(self) -> str:
        return f"{markdown(self.sentence)}\n\n{html.markdown_table(*self._rows())}"


def per_mb(option: Alternative, planned: QuantFormat) -> float:
    """Loss that an alternative saves per MB added, or adds per MB saved, nats; NaN for the planned one."""
    marginal = option.marginal_nats_per_byte
    return math.nan if marginal is None or option.format == planned else marginal * MB
