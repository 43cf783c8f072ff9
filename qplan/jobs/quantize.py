"""From a model to an MNN folder that runs: how thorough the analysis is to be, and the folder that is given out."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qplan.artifact import new_folder
from qplan.cost.work import spell_time
from qplan.errors import InputError
from qplan.jobs.expect import expect_analysis
from qplan.jobs.options import AnalyzeOptions
from qplan.mnn.files import CHECKSUMS_FILE, GRAPH_FILE
from qplan.run.folder import RunFolder

PATIENCE_S = 20 * 60.0
"""Longest analysis that is expected to be waited for, where nothing says how thorough it is to be."""

_LINKED_BYTES = 1 << 20
"""Files from this size on take no room twice where the file system allows; smaller ones, such as settings, are for
people to change."""


@dataclass(frozen=True)
class ChosenEffort:
    """How thorough an analysis is, and why."""

    options: AnalyzeOptions
    told: str
    """For people."""


def choose_effort(options: AnalyzeOptions, run: RunFolder) -> ChosenEffort:
    """The default effort where it is expected to end within `PATIENCE_S` on this machine, and else the quick one.

    Args:
        options: of the analysis, with the default effort.
        run: where it writes.

    Raises:
        InputError: the model cannot be planned.
        StaleArtifactError: the run was begun with other options.
    """
    outlook = expect_analysis(options, run)
    seconds = 0.0 if outlook is None else outlook.expected.seconds
    if seconds <= PATIENCE_S:
        return ChosenEffort(options, f"effort default: about {spell_time(seconds)} of analysis expected")
    quick = replace(options, effort="quick")
    shorter = expect_analysis(quick, run)
    takes = "" if shorter is None else f": about {spell_time(shorter.expected.seconds)} of analysis expected"
    told = f"effort quick{takes}, where --effort default takes about {spell_time(seconds)}"
    return ChosenEffort(quick, told)


def check_out(out: Path) -> None:
    """Refuse to replace anything but a model that qplan built.

    Raises:
        InputError: there is something else.
    """
    if out.is_dir() and (
        not any(out.iterdir()) or all((out / name).is_file() for name in (CHECKSUMS_FILE, GRAPH_FILE))
    ):
        return
    if os.path.lexists(out):
        what = "a folder that holds something else than a model of qplan's" if out.is_dir() else "no folder"
        msg = f"OUT {out} is {what}; name another one, which is made, or remove it"
        raise InputError(msg)


def give_out(model: Path, out: Path) -> None:
    """Make ``out`` a copy of a built model. Large files are links to the same bytes where that is possible.

    Raises:
        InputError: there is something else, or it cannot be written.
        StorageError: the disk is full.
    """
    check_out(out)
    with new_folder(out, replace=True) as draft:
        for path in sorted(path for path in model.iterdir() if path.is_file()):
            if path.stat().st_size >= _LINKED_BYTES:
                with suppress(OSError):  # on another file system, or on one without links
                    os.link(path, draft / path.name)
                    continue
            shutil.copy2(path, draft / path.name)
