"""Nothing that MNN's tools report, install or fetch: no command opens a socket, calls pip or loads ``MNN.tools``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.support.tiny_models import words

WATCH = Path(__file__).with_name("watch")
ROOT = Path(__file__).parents[2]

ALL_COMMANDS = """
import json, sys
from qplan.cli.main import main
commands, model = json.loads(sys.argv[1]), sys.argv[2]
for arguments in commands:
    sys.argv = ["qplan", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code not in ((7,) if arguments[0] == "ladder" else (0, None)):
            raise
import qplan
with qplan.Engine(model) as engine:
    print("".join(engine.generate("the", 3)))
"""


def watched(arguments: list[str], folder: Path) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a Python and all its children under watch; what they should not have done, a line each."""
    log = folder / "watch.log"
    paths = os.pathsep.join([str(WATCH), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "QPLAN_WATCH_LOG": str(log)}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=600
    )
    return done, log.read_text(encoding="utf-8") if log.is_file() else ""


def installed() -> set[str]:
    return {f"{found.name}=={found.version}" for found in distributions()}


def test_no_command_phones_home_or_installs(tied_model_dir: Path, good: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(words(2000))
    model, few = str(tied_model_dir), ["--tokens", "64"]
    analyze = ["--samples", "2", "--seq-len", "32", "--formats", "fp16,int8,int4", "--rounding", "rtn"]
    commands = [
        ["analyze", model, "--calib", "text.txt", "--run", "run", "--mode", "gradient", *analyze],
        ["emit", "--run", "run", "--budget", "int8", "--engine", "3.5.0", "--no-build", *few],
        ["check", str(good["tied"]), "--json"],
        ["ladder", model, "--text", "text.txt", "--seq-len", "32", "--tolerance", "fp16=1e-12", *few],
        ["compat"],
        ["compat", "measure", "--architectures", "--only", "llama", "--table", "table.json"],
    ]
    before = installed()
    done, log = watched(["-c", ALL_COMMANDS, json.dumps(commands), str(good["tied"])], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert log == ""
    assert installed() == before
    seen = (tmp_path / "watch.log.seen").read_text().split()
    assert len(seen) > 15  # every child process was watched


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import socket; socket.socket()", "socket.__new__"),
        ("import socket; socket.getaddrinfo('localhost', 1)", "socket.getaddrinfo"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', '--version'])", "subprocess.Popen"),
        ("import sys\nsys.path.insert(0, '.')\nimport MNN.tools", "import MNN.tools"),
    ],
)
def test_the_watch_sees(code: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "MNN" / "tools").mkdir(parents=True)
    (tmp_path / "MNN" / "__init__.py").touch()
    (tmp_path / "MNN" / "tools" / "__init__.py").touch()
    _, log = watched(["-c", code], tmp_path)
    assert told in log
