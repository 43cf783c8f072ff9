"""What commands print for people, for scripts, and for nobody."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qplan.cost.file_bytes import estimate_fixed
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.run.folder import RunFolder
from tests.support.command import Done, qplan
from tests.support.commands import commands
from tests.support.documented import DOCS, assert_documented, keys, paths
from tests.support.invented_table import make_table
from tests.support.tiny_models import words

JSON_PAGE = DOCS / "reference" / "json.md"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that holds an invented analysis and two plans, and with a folder that is no model."""
    folder = tmp_path_factory.mktemp("work")
    run, table = RunFolder(folder / "qplan-runs" / "tiny"), make_table()
    table.write(run.sensitivity)
    for budget in ("int4", "int8"):
        make_plan(table, Budget.parse(budget), estimate_fixed(table.model)).write(run.budget(budget) / "plan.json")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text(words(400))
    return folder


CHEAP = {
    "frontier": ("frontier", "--points", "4"),
    "explain": ("explain", "int4"),
    "plan": ("plan", "--budget", "int4"),
    "plan diff": ("plan", "diff", "int4", "int8"),
    "compat": ("compat",),
    "engines": ("engines",),
    "engines list": ("engines", "list"),
}


def hold(done: Done, command: str) -> None:
    """Hold a command's object to the page."""
    document = done.document
    assert document["command"] == command
    assert document["exit_code"] == done.returncode
    assert_documented(document, keys(JSON_PAGE, "Every command") | keys(JSON_PAGE, f"qplan {command}"))


@pytest.mark.parametrize("command", CHEAP)
def test_json_is_one_object_with_the_documented_keys(work: Path, command: str) -> None:
    done = qplan(*CHEAP[command], "--json", folder=work)
    assert done.returncode == 0, done.stderr
    hold(done, command)


def test_formats_on_arm_are_an_object_of_their_own(work: Path) -> None:
    done = qplan("compat", "--arm", "--json", folder=work)
    assert_documented(done.document, keys(JSON_PAGE, "Every command") | keys(JSON_PAGE, "Formats of qplan compat"))
    assert "arm-dot: NaN (precision low, decode)" in qplan("compat", "--arm", folder=work, columns=120).stdout


@pytest.mark.parametrize("command", CHEAP)
def test_quiet_prints_nothing_and_people_are_told_something(work: Path, command: str) -> None:
    assert qplan(*CHEAP[command], "--quiet", folder=work) == Done(0, "", "")
    assert qplan(*CHEAP[command], folder=work).stdout


def test_analyze_in_every_mode(work: Path, model_folders: dict[str, Path]) -> None:
    small = ("--calib", "text.txt", "--samples", "2", "--seq-len", "16", "--formats", "int8,int4", "--mode", "gradient")
    analyze = ("analyze", str(model_folders["qwen2"]), *small, "--rounding", "rtn", "--fold", "off", "--run")
    done = qplan(*analyze, "a", "--json", folder=work)
    assert done.returncode == 0, done.stderr
    hold(done, "analyze")
    assert {fmt for tensor in done.document["tensors"] for fmt in tensor["loss_nats"]} >= {"int8", "int4"}
    assert qplan(*analyze, "b", "--quiet", folder=work) == Done(0, "", "")


def test_a_broken_model_has_findings_and_an_error(work: Path) -> None:
    done = qplan("check", "empty", "--json", folder=work)
    assert done.returncode == 8
    hold(done, "check")
    assert done.document["error"]["kind"] == "PreflightError"
    assert not done.document["ok"]
    quiet = qplan("check", "empty", "--quiet", folder=work)
    assert (quiet.returncode, quiet.stdout) == (8, "")
    assert quiet.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (("explain", "nothing", "--json"), 2, "InputError"),
        (("emit", "--budgets", "int4", "--json"), 2, "NoSuchOption"),
        (("analyze", "--json"), 2, "MissingParameter"),
        (("emit", "--repair", "many", "--json"), 2, "BadParameter"),
        (("analyze", "x", "--formats", "int7", "--json"), 2, "InputError"),
        (("frontier", "--quiet", "--json"), 2, "InputError"),
        (("nonsense", "--json"), 2, "UsageError"),
    ],
)
def test_an_error_is_an_object_too(work: Path, arguments: tuple[str, ...], code: int, kind: str) -> None:
    done = qplan(*arguments, folder=work)
    error = done.document["error"]
    assert (done.returncode, error["exit_code"]) == (code, code)
    assert error["kind"] == kind
    assert error["message"]
    assert set(paths(done.document, {})) == set(keys(JSON_PAGE, "Every command"))


def test_every_command_is_documented_with_its_keys() -> None:
    for command in commands():
        assert keys(JSON_PAGE, f"qplan {command}")


@pytest.mark.slow
def test_a_file_gets_no_control_codes_and_a_terminal_none_if_it_does_not_want_them(work: Path) -> None:
    arguments = [sys.executable, "-c", "from qplan.cli.main import main; main()", "explain", "int4"]
    clean = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR")}
    piped = subprocess.run(arguments, cwd=work, env=clean, capture_output=True, check=True, timeout=120)
    assert b"\x1b" not in piped.stdout + piped.stderr

    def on_a_terminal(**environment: str) -> bytes:
        master, slave = pty.openpty()
        child = subprocess.Popen(
            arguments, cwd=work, env=clean | {"TERM": "xterm"} | environment, stdout=slave, stderr=slave
        )
        os.close(slave)
        found = b""
        try:
            while part := os.read(master, 65536):
                found += part
        except OSError:  # Linux tells the end of a terminal by EIO
            pass
        os.close(master)
        assert child.wait(timeout=120) == 0
        return found

    colors = re.compile(rb"\x1b\[[0-9;]*3[0-7]m")
    assert b"\x1b" in on_a_terminal()
    assert not colors.search(on_a_terminal(NO_COLOR="1"))
