"""Writes the tables of ``docs/reference/compatibility.md`` from ``qplan/compat/compat.json`` and ``arm.json``.

Run ``python docs/hooks/compatibility.py`` after ``qplan compat measure``; a test holds the page to the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from qplan.compat.arm_table import ArmTable
from qplan.compat.settings import setting_rows
from qplan.compat.table import CompatTable
from qplan.model.model_settings import CONFIG_KEYS
from qplan.model.registry import ARCHITECTURES
from qplan.model.specimen_sizes import SPECIMENS

PAGE = Path(__file__).parents[1] / "reference" / "compatibility.md"

_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def engines(table: CompatTable) -> Iterator[str]:
    """One line per exporter, options and converter; the worst outcome per engine."""
    yield f"| exporter | options | converter | {' | '.join(table.engines)} |"
    yield "|---|---|---|" + "---|" * len(table.engines)
    for (exporter, options, converter), by_engine in table.rows().items():
        outcomes = [by_engine[engine].outcome if engine in by_engine else "" for engine in table.engines]
        shown = " | ".join(outcome if outcome in ("ok", "") else f"**{outcome}**" for outcome in outcomes)
        asked = f"`{options}`" if options.startswith("--") else options
        yield f"| {exporter} | {asked} | {converter} | {shown} |"


def architectures(table: CompatTable) -> Iterator[str]:
    """One line per architecture; outcome and error per exporter and length."""
    plain = [cell for cell in table.architectures if not SPECIMENS[cell.architecture].setting]
    columns = sorted(dict.fromkeys((cell.exporter, cell.tokens) for cell in plain))
    cells = {(cell.architecture, cell.exporter, cell.tokens): cell for cell in table.architectures}
    yield "| architecture | " + " | ".join(f"{exporter}, {tokens} tokens" for exporter, tokens in columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for name in dict.fromkeys(cell.architecture for cell in plain):
        shown = []
        for column in columns:
            cell = cells.get((name, *column))
            if cell is None:
                shown.append("")
                continue
            outcome = cell.outcome if cell.outcome == "ok" else f"**{cell.outcome}**"
            shown.append(outcome if cell.error is None else f"{outcome}, {cell.error:.0e}")
        yield f"| {name} | " + " | ".join(shown) + " |"


def settings(table: CompatTable) -> Iterator[str]:
    """One line per architecture and setting: what is read, what the exporter makes of it, what `analyze` does."""
    yield "| model type | setting | read in `config.json` | exporter | 48 tokens | 200 tokens | `qplan analyze` |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(setting_rows(table), key=lambda row: (row.model_type, row.setting)):
        errors = " | ".join(
            cell.outcome if cell.error is None else f"{cell.error:.0e}" for cell in (row.within, row.beyond)
        )
        keys = ", ".join(f"`{key}`" for key in CONFIG_KEYS[row.setting])
        yield f"| {row.model_type} | {row.setting} | {keys} | {row.within.exporter} | {errors} | {_DONE[row.verdict]} |"
    others = dict.fromkeys(specimen.model_type for specimen in SPECIMENS.values())
    for model_type in sorted(set(others) - set(ARCHITECTURES)):
        yield f"| {model_type} | any | `model_type` | | | | **refuses**: not supported |"


_DONE: dict[str, str] = {
    "right": "accepts",
    "right up to the boundary": "**refuses** beyond the boundary; `--max-context` limits the model to it",
    "wrong": "**refuses**",
}


def arm(table: ArmTable) -> Iterator[str]:
    """One line per group of formats that do alike on all processors."""
    yield "| formats | " + " | ".join(f"`{name}`" for name in table.processors) + " |"
    yield "|---|" + "---|" * len(table.processors)
    for names, found in table.summary():
        shown = " | ".join(result if result in ("ok", "") else f"**{result}**" for result in found)
        yield f"| {'<br>'.join(names)} | {shown} |"


def arm_dates(table: ArmTable) -> Iterator[str]:
    """What was measured with what."""
    yield f"Measured {table.date} with MNN {table.engine} for aarch64 under qemu {table.emulator}."


def dates(table: CompatTable) -> Iterator[str]:
    """What was measured where and when."""
    when = sorted({cell.date for cell in table.cells} | {cell.date for cell in table.architectures})
    first = table.architectures[0]
    yield (
        f"Measured {' to '.join(dict.fromkeys((when[0], when[-1])))} on {table.platform}; architectures on engine "
        f"{first.engine} against transformers {first.transformers}."
    )


def rewritten(page: str, table: CompatTable, formats: ArmTable) -> str:
    """The page with its tables made again."""
    made = {kind.__name__: "\n".join(kind(table)) for kind in (engines, architectures, settings, dates)}
    made |= {kind.__name__: "\n".join(kind(formats)) for kind in (arm, arm_dates)}
    return _TABLE.sub(lambda match: f"{match[1]}\n{made[match[2]]}\n\n{match[3]}", page)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(rewritten(text, CompatTable.read(), ArmTable.read()), encoding="utf-8")
