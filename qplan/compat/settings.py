"""Which settings of a config the measured exporters get right, and up to which length: what `analyze` refuses by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from qplan.compat.table import ArchitectureCell, CompatTable
from qplan.errors import InputError
from qplan.model.model_settings import ModelSetting
from qplan.model.setting_specimens import BOUNDARY
from qplan.model.specimen_sizes import SPECIMENS, setting_name
from qplan.notes import Note, note

Verdict = Literal["right", "right up to the boundary", "wrong"]


@dataclass(frozen=True)
class SettingRow:
    """One setting of one architecture, as one exporter translates it."""

    model_type: str
    setting: str
    """Its name, see `qplan.model.model_settings.ModelSetting`."""
    within: ArchitectureCell
    """Measured on a sequence shorter than the specimen's window or original context."""
    beyond: ArchitectureCell
    """Measured on a longer one."""

    @property
    def verdict(self) -> Verdict:
        """Whether the exporter is right about the setting."""
        if self.within.outcome != "ok":
            return "wrong"
        return "right" if self.beyond.outcome == "ok" else "right up to the boundary"

    @property
    def told(self) -> str:
        """What was measured, for people."""
        lengths = ", ".join(f"{_error(cell)} at {cell.tokens} tokens" for cell in (self.within, self.beyond))
        limit = f", boundary {BOUNDARY}" if self.verdict == "right up to the boundary" else ""
        return f"a tiny {self.model_type}'s logits are off by {lengths}{limit}"


def setting_rows(table: CompatTable) -> tuple[SettingRow, ...]:
    """Every setting that was measured, by architecture and exporter."""
    cells: dict[tuple[str, str], list[ArchitectureCell]] = {}
    for cell in table.architectures:
        specimen = SPECIMENS.get(cell.architecture)
        if specimen is not None and specimen.setting:
            cells.setdefault((cell.architecture, cell.exporter), []).append(cell)
    rows = []
    for (name, _), found in cells.items():
        within, beyond = (min(found, key=lambda cell: cell.tokens), max(found, key=lambda cell: cell.tokens))
        rows.append(SettingRow(SPECIMENS[name].model_type, SPECIMENS[name].setting, within, beyond))
    return tuple(rows)


def check_settings(
    table: CompatTable, model_type: str, settings: Iterable[ModelSetting], context: int, exporter: str
) -> tuple[Note, ...]:
    """Refuse a model with a setting that the exporter would drop within the model's context.

    Args:
        table: what was measured.
        model_type: the model's.
        settings: of its config.
        context: longest sequence that the built model is to take, in tokens.
        exporter: its version, as the table names it.

    Returns:
        What changes nothing within the context, and what nobody measured: emit's gate then decides.

    Raises:
        InputError: names setting, value, measured error, and what would work.
    """
    _check_plain(table, model_type, exporter)
    rows = {(row.model_type, row.setting, row.within.exporter): row for row in setting_rows(table)}
    notes: list[Note] = []
    refused: list[tuple[ModelSetting, SettingRow]] = []
    for setting in settings:
        row = rows.get((model_type, setting.name, exporter))
        shown = f"{setting.key} {setting.value}"
        if row is None:
            notes.append(note("setting-unmeasured", setting=shown, exporter=exporter))
        elif row.verdict == "wrong" or (setting.boundary is None and row.verdict != "right"):
            refused.append((setting, row))
        elif row.verdict == "right up to the boundary" and setting.boundary is not None:
            if context > setting.boundary:
                refused.append((setting, row))
            else:
                notes.append(note("setting-beyond-context", setting=shown, exporter=exporter, tokens=setting.boundary))
    if refused:
        raise InputError(_refusal(refused, model_type, context, exporter, rows.values()))
    return tuple(notes)


def _check_plain(table: CompatTable, model_type: str, exporter: str) -> None:
    """Refuse an architecture of which the exporter gets even the plainest specimen wrong, and another does not."""
    plain = [
        cell
        for cell in table.architectures
        if cell.architecture == model_type and not SPECIMENS[cell.architecture].setting
    ]
    wrong = [cell for cell in plain if cell.exporter == exporter and cell.outcome != "ok"]
    right = sorted({cell.exporter for cell in plain} - {cell.exporter for cell in plain if cell.outcome != "ok"})
    if wrong and right:
        msg = (
            f"config.json: model_type {model_type}: {exporter} translates it wrongly, and the built model would be "
            f"wrong at every length (a tiny {model_type}'s logits are off by {_error(wrong[-1])} at {wrong[-1].tokens} "
            f"tokens); use --llmexport with {' or '.join(right)}, which is right about it"
        )
        raise InputError(msg)


def _refusal(
    refused: list[tuple[ModelSetting, SettingRow]],
    model_type: str,
    context: int,
    exporter: str,
    rows: Iterable[SettingRow],
) -> str:
    always = [pair for pair in refused if pair[1].verdict == "wrong" or pair[0].boundary is None]
    setting, row = (always or refused)[0]
    fails = row.within.outcome == "export fails"
    what = f"config.json: {setting.key} {setting.value}: {exporter} {'fails with it' if fails else 'drops it'}"
    if not always:
        shortest = min(found.boundary for found, _ in refused if found.boundary is not None)
        return (
            f"{what}, and the built model would be wrong beyond {setting.boundary} tokens of its {context} "
            f"({row.told}); give --max-context {shortest}, which limits the built model to where it is right"
        )
    right = sorted(
        {
            other.within.exporter
            for other in rows
            if (other.model_type, other.setting, other.verdict) == (model_type, setting.name, "right")
        }
    )
    remedy = f"use --llmexport with {' or '.join(right)}, which is right about it" if right else _NONE_IS_RIGHT
    name = setting_name(model_type, setting.name)
    effect = row.within.detail if fails else f"and the built model would be wrong at every length ({row.told})"
    return f"{what}, {effect}; {remedy.format(name=name)}"


_NONE_IS_RIGHT = (
    "no exporter in the table is right about it. Give --llmexport a newer MNN checkout, which 'qplan compat measure "
    "--architectures --only {name} --llmexport FOLDER' measures"
)


def _error(cell: ArchitectureCell) -> str:
    return cell.outcome if cell.error is None else f"{cell.error:.0e}"
