"""The sensitivity table of a run, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from qplan.explore import html
from qplan.explore.frames import format_frame, sensitivity_frame
from qplan.explore.saved import under
from qplan.formats import QuantFormat
from qplan.report import notation
from qplan.report.grid import LossTable, loss_table
from qplan.run.table import SensitivityTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class SensitivityView:
    """What every format costs in every tensor, under one of MNN's memory settings.

    Losses are mean KL(FP32 || variant) at the logits, in nats per token, with one tensor changed at a time.
    """

    table: SensitivityTable
    """The table as `qplan analyze` wrote it."""

    @property
    def memory(self) -> str:
        """MNN's setting that figures and plans of this view are for: ``low`` computes with int8 activations."""
        return self.table.goal

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of the run, and those that odd tensor widths forced, widest first."""
        return self.losses.formats

    @property
    def narrow(self) -> str:
        """A format that loses visibly: ``int4``, or where that was not measured the integer format nearest to it.

        Example:
            >>> run.plot_ranking(run.table.narrow)
        """
        return self._near(4)

    @property
    def wide_integers(self) -> str:
        """``int8``, or where that was not measured the integer format nearest to it."""
        return self._near(8)

    def _near(self, bits: int) -> str:
        """The format of a width, in blocks of the default size, or the nearest one; any where there are no integers."""
        parsed = [(name, QuantFormat.parse(name)) for name in self.formats]
        integers = [(name, fmt) for name, fmt in parsed if not fmt.is_float] or parsed
        like = QuantFormat(bits)
        return min(integers, key=lambda one: (abs(one[1].bits - bits), one[1] != like, -one[1].block))[0]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Hugging Face names in order of execution, the head last."""
        return tuple(spec.name for spec in self.table.model.planned)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per tensor, format and memory setting; see `qplan.explore.frames.sensitivity_frame` for columns."""
        return sensitivity_frame(self.table)

    @cached_property
    def losses(self) -> LossTable:
        """Losses by tensor and by format of the run, for tables and heat maps."""
        return loss_table(self.table)

    @property
    def memories(self) -> tuple[str, ...]:
        """MNN's memory settings that were measured, the run's own first."""
        return self.table.memories

    def of(self, fmt: str | None = None) -> pd.DataFrame:
        """One row per tensor: what a format costs it under this memory setting; columns as `frame` has them.

        Args:
            fmt: a format of the run; None for `narrow`. Tensors whose width forces another block have what stands in.

        Raises:
            InputError: the format was not measured; says which were.

        Example:
            >>> run.table.of("int4").nlargest(5, "loss_nats")[["tensor", "loss_nats"]]
        """
        return format_frame(self.table, fmt or self.narrow)

    def across(self, fmt: str | None = None) -> pd.DataFrame:
        """What a format costs each tensor under every memory setting that was measured.

        Args:
            fmt: a format of the run; None for `wide_integers`.

        Returns:
            Losses in nats per token, a row per tensor and a column per setting; with both, ``low_over_normal``.

        Raises:
            InputError: the format was not measured; says which were.
        """
        chosen = fmt or self.wide_integers
        found = pd.DataFrame({m: self.under(m).of(chosen).set_index("tensor")["loss_nats"] for m in self.memories})
        return found.assign(low_over_normal=found["low"] / found["normal"]) if len(self.memories) > 1 else found

    def under(self, memory: str) -> SensitivityView:
        """The same table seen under another memory setting, ``low`` or ``normal``.

        Raises:
            InputError: it was not measured.
        """
        return SensitivityView(under(self.table, memory))

    def wide(self) -> pd.DataFrame:
        """Losses in nats per token under this memory setting: tensors down, formats across, widest first."""
        rows = {name: {fmt: cell.kl_nats for fmt, cell in row.items()} for name, row in self.losses.losses.items()}
        return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(self.formats)).rename_axis("tensor")

    def plot(self, formats: str | Sequence[str] | None = None) -> Figure:
        """Heat maps layers x tensors of the loss in formats, nats per token; see `loss_heatmaps`.

        Raises:
            InputError: a format that was not measured.
        """
        from qplan.explore.loss_figures import loss_heatmaps  # noqa: PLC0415 - matplotlib

        return loss_heatmaps(self.table, formats)

    def _title(self) -> tuple[str, list[str]]:
        table, conditions = self.table, self.table.conditions
        count = len(table.model.planned)
        title = f"Sensitivity of {notation.model_name(table.model.source)}: {count} tensors, memory {table.goal}"
        tokens = conditions.samples * conditions.seq_len
        return title, [
            f"{tokens:,} tokens of {conditions.calibration}; mode {conditions.mode}, rounding {conditions.rounding}",
            "losses are mean KL to FP32 in nats per token, with one tensor changed at a time",
        ]

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        head = [
            "format",
            "tensors",
            "sum, nats",
            "mean SQNR, dB",
            "most sensitive tensor",
            "its loss, nats",
            "measured",
        ]
        rows = []
        for fmt in self.formats:
            cells = {name: row[fmt] for name, row in self.losses.losses.items() if fmt in row}
            worst = max(cells, key=lambda name: cells[name].kl_nats)
            finite = [cell.sqnr_db for cell in cells.values() if cell.sqnr_db < float("inf")]
            rows.append(
                [
                    fmt,
                    str(len(cells)),
                    notation.loss(sum(cell.kl_nats for cell in cells.values())),
                    notation.decibel(sum(finite) / len(finite) if finite else float("inf")),
                    worst,
                    notation.loss(cells[worst].kl_nats),
                    notation.percent(sum(cell.source == "measured" for cell in cells.values()) / len(cells)),
                ]
            )
        return head, rows

    def __repr__(self) -> str:
        """Show what was measured and what formats cost."""
        title, lines = self._title()
        return html.text_card(title, lines, html.text_table(*self._rows()))

    def _repr_html_(self) -> str:
        title, lines = self._title()
        return html.card(title, lines, html.rows_table(*self._rows()))

    def _repr_markdown_(self) -> str:
        title, lines = self._title()
        return html.markdown_card(title, lines, html.markdown_table(*self._rows()))
