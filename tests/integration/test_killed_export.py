"""A signal while llmexport is at work: nothing runs on, nothing half made is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qplan.artifact import new_folder
from qplan.model.specimen import save_specimen
from tests.support.wait import group_runs, until

EXPORTS = """
import sys
from pathlib import Path
from qplan.cli.main import main
from qplan.compat.table import CompatTable
from qplan.mnn.build.exporter import export_skeleton

def read(*_):
    export_skeleton(Path(sys.argv[1]), Path("out/model"), progress=lambda line: Path("at-work").touch())

CompatTable.read = read
main(["compat"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_exporter_too(tmp_path: Path, number: signal.Signals, code: int) -> None:
    source = save_specimen("qwen2", tmp_path / "hf")
    with subprocess.Popen(
        [sys.executable, "-c", EXPORTS, str(source)], cwd=tmp_path, stderr=subprocess.PIPE
    ) as process:
        until(lambda: (tmp_path / "at-work").exists() or process.poll() is not None)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        assert children
        process.send_signal(number)
        assert process.wait(60) == code
    until(lambda: not any(group_runs(int(child)) for child in children))
    assert len(list((tmp_path / "out").iterdir())) == (number == signal.SIGKILL)
    with new_folder(tmp_path / "out" / "model"):
        pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
