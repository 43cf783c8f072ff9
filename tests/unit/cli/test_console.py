"""Names and texts from outside are data in a terminal: printed or visibly escaped, never obeyed."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.table import Table

from qplan.cli import console, diff_tables, emit, explain_tables, tables
from qplan.cli.console import Terminal
from qplan.cli.frontier_table import frontier_table
from qplan.cost.file_bytes import estimate_fixed
from qplan.errors import StorageError
from qplan.formats import QuantFormat
from qplan.jobs.emitted import Emitted
from qplan.jobs.frontier import Swept
from qplan.jobs.progress import Pace, WorkLines
from qplan.planner.diff import diff
from qplan.planner.explain import explain_all
from qplan.planner.frontier import frontier
from qplan.report.literal import visible
from qplan.run.damage import RunFolderWarning, tell_damaged
from tests.support.hostile import NAME, named_run


def test_control_characters_are_shown_and_not_obeyed() -> None:
    written = StringIO()
    Terminal(file=written, force_terminal=True, color_system="standard", width=80).print(
        "a\x1b[31mb\x00c\x9b", style="red"
    )
    assert r"a\x1b[31mb\x00c\x9b" in written.getvalue()
    assert written.getvalue().startswith("\x1b["), "its own colors stay"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What is printed to any of the three consoles, in a terminal with colors as wide as needed."""
    shown = StringIO()
    terminal = Terminal(file=shown, force_terminal=True, color_system="standard", width=400)
    for name in ("err", "out", "alarm"):
        monkeypatch.setattr(console, name, terminal)
    monkeypatch.setattr(emit, "out", terminal)
    return shown


def plain(written: StringIO) -> str:
    """What was printed, without the console's own colors."""
    return re.sub(r"\x1b\[[0-9;]*m", "", written.getvalue())


def test_a_message_of_any_kind_is_text(written: StringIO) -> None:
    for print_ in (console.say, console.remark, console.error):
        print_(f"loading {NAME} and [/]")
    assert plain(written).count(f"loading {visible(NAME)} and [/]\n") == 3


def test_names_in_everything_that_emit_shows_are_text(written: StringIO, tmp_path: Path) -> None:
    run = named_run()
    emit.show(Emitted(tmp_path / NAME, run.plan, run.verification, f"llmexport --path {NAME}", (NAME,)))
    text = plain(written)
    for line in (
        f"Plan for {NAME}: ",
        f"✓ {NAME}: {NAME}",
        f"--path {NAME}",
        f"note: {NAME}",
        f"model:  {tmp_path / NAME}",
    ):
        assert visible(line) in text


def test_names_in_every_table_are_text(written: StringIO) -> None:
    run = named_run()
    explained = explain_all(run.table, run.plan, [f"model.layers.0.{NAME}"])
    swept = Swept((), run.table, frontier(run.table, estimate_fixed(run.table.model), points=3), ())
    other = replace(run.plan, tensors=tuple(replace(t, format=QuantFormat.parse("fp16")) for t in run.plan.tensors))
    views: list[Table] = [
        tables.sensitivity_table(run.table),
        explain_tables.overview(explained, NAME),
        *map(explain_tables.details, explained),
        diff_tables.changes_table(diff(run.plan, other), other, most=None),
        diff_tables.totals_table(diff(run.plan, other), run.plan, other, (NAME, NAME)),
    ]
    for view in views:
        written.seek(0)
        written.truncate()
        console.out.print(view)
        flat = " ".join(plain(written).split())
        assert visible(NAME.partition("\n")[0]) in flat, view
    console.out.print(frontier_table(swept))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_remark_is_made_once_however_often_it_is_due(written: StringIO) -> None:
    with warnings.catch_warnings(), console.remarked(RunFolderWarning):
        warnings.simplefilter("always")
        for problem in ("skeleton.json is damaged", "fold.json is damaged", "skeleton.json is damaged"):
            for _ in range(2):
                tell_damaged(problem)
    assert plain(written).count("skeleton.json is damaged") == 1
    assert plain(written).count("fold.json is damaged") == 1


def test_a_full_disk_is_told_and_is_no_bug() -> None:
    code = "from qplan.cli.main import main; main(['emit', '--budget', 'int44', '--json'])"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == StorageError.exit_code
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


class _Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_follows_the_speed_so_far_and_not_what_was_done_before() -> None:
    clock = _Clock()
    pace = Pace(clock)
    pace.see(0, 100_000)
    assert pace.left() == ""
    pace.see(40_000, 100_000)  # at once: an earlier run did that
    clock.now = 20.0
    pace.see(50_000, 100_000)  # half as fast as expected
    assert pace.left_s == 100.0
    clock.now = 30.0
    pace.see(60_000, 100_000)
    assert pace.left() == "about 60 s left"
    pace.see(100_000, 100_000)
    assert pace.left() == ""


def test_of_a_slow_start_no_hours_are_made() -> None:
    clock = _Clock()
    pace = Pace(clock)
    pace.see(0, 100_000)
    clock.now = 43.0
    pace.see(450, 100_000)
    assert pace.left() == ""
    clock.now = 60.0
    pace.see(1_000, 100_000)
    assert pace.left() == "about 99 min left"


def test_a_log_tells_each_stage_and_never_falls_silent_while_work_gets_done() -> None:
    clock, told = _Clock(), list[str]()
    lines = WorkLines("1 of 2, analyzing", Pace(clock), told.append)
    lines.stage("stage 1 of 2, loading")
    lines(0, 1000)
    assert not told, "nothing is known yet"
    clock.now = 6.0
    lines.stage("stage 2 of 2, training")
    lines(10, 1000)
    assert len(told) == 1
    assert "training: 1 % of all, 6 s" in told[0]
    for second in range(7, 187):  # ten times as long as was expected
        clock.now = float(second)
        lines(10 + (second - 6) // 10, 1000)
    assert len(told) == 4, "one a minute"
    assert "training: 3 % of all, 3 min, about" in told[-1]
