"""Child processes: output, failure, signals and time."""

import sys
from pathlib import Path

import pytest

from qplan.errors import ToolError
from qplan.mnn import child


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "script.py"
    monkeypatch.setattr(child, "child_command", lambda name, arguments: [sys.executable, str(path), *arguments])
    return path


def run(tmp_path: Path, lines: list[str] | None = None, timeout_s: float = 20) -> str:
    progress = None if lines is None else lines.append
    return child.run_child(
        "script.py",
        ["a b"],
        what="trying",
        cwd=tmp_path,
        timeout_s=timeout_s,
        progress=progress,
        environment={"X": "1"},
    )


def test_output_environment_and_progress(script: Path, tmp_path: Path) -> None:
    script.write_text(
        "import os, sys; print(sys.argv[1], os.environ['X'], os.getcwd()); print('\\x1b[32mgreen\\x1b[0m\\r2')"
    )
    lines: list[str] = []
    assert run(tmp_path, lines).startswith(f"a b 1 {tmp_path}\n")
    assert lines == [f"a b 1 {tmp_path}", "green", "2"]


def test_failure_carries_command_code_and_last_words(script: Path, tmp_path: Path) -> None:
    script.write_text("import sys; print('y' * 9000, file=sys.stderr); sys.exit('so it goes')")
    with pytest.raises(ToolError, match="so it goes") as failure:
        run(tmp_path)
    assert failure.value.code == 1
    assert "'a b'" in failure.value.command
    assert len(failure.value.tail) <= child.TAIL_CHARACTERS


def test_signal_is_told(script: Path, tmp_path: Path) -> None:
    script.write_text("import os; os.kill(os.getpid(), 11)")
    with pytest.raises(ToolError, match="killed by signal 11"):
        run(tmp_path)


@pytest.mark.parametrize(
    "text", ["import time; time.sleep(60)", "import os, time; os.close(1); os.close(2); time.sleep(60)"]
)
def test_a_hang_is_killed(script: Path, tmp_path: Path, text: str) -> None:
    script.write_text(text)
    with pytest.raises(ToolError, match=r"not done after 0\.5 s, killed"):
        run(tmp_path, timeout_s=0.5)
