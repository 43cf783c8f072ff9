"""Child processes: output, failure, signals and time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qplan.errors import ToolError
from qplan.mnn import child
from tests.support.wait import group_runs, runs, until


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


PARENT = """
import sys, threading
from pathlib import Path
from qplan.mnn.child import Child
sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
found = []
# a thread that ends: children belong to the process
thread = threading.Thread(target=lambda: found.append(Child([sys.executable, "-c", sleeper], cwd=Path.cwd())))
thread.start(); thread.join()
print(found[0].pid, flush=True)
if sys.argv[1] == "ends":
    sys.exit(0)
found[0].wait()
"""


@pytest.mark.parametrize("how", ["ends", "SIGKILL", "SIGTERM", "SIGSEGV"])
def test_a_child_and_its_own_children_end_with_qplan(how: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, how], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        if how != "ends":
            until(lambda: group_runs(group))
            assert runs(group)
            parent.send_signal(getattr(signal, how))
        parent.wait(60)
    until(lambda: not group_runs(group))


def test_what_a_child_has_started_ends_with_it(script: Path, tmp_path: Path) -> None:
    script.write_text(
        "import os, subprocess, sys\n"
        "sleeper, nowhere = [sys.executable, '-c', 'import time; time.sleep(60)'], subprocess.DEVNULL\n"
        "subprocess.Popen(sleeper, stdout=nowhere, stderr=nowhere)\n"
        "print(os.getpid())"
    )
    group = int(run(tmp_path))
    until(lambda: not group_runs(group))


def test_a_forked_process_leaves_the_child_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read(); print('done')"]
    with child.Child(command, cwd=tmp_path, stdin=subprocess.PIPE) as process:
        forked = os.fork()
        if forked == 0:
            process.end()
            os._exit(process.poll() or 0)
        assert os.waitpid(forked, 0)[1] == 0
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        assert process.stdout is not None
        assert process.stdout.read() == b"done\n"
        assert process.wait(60) == 0


def test_only_the_end_of_an_endless_output_is_kept(script: Path, tmp_path: Path) -> None:
    script.write_text(f"import sys; sys.stdout.write('x' * {2 * child.MOST_OUTPUT_BYTES}); print('end')")
    output = run(tmp_path)
    assert len(output) == child.MOST_OUTPUT_BYTES
    assert output.endswith("xend\n")
