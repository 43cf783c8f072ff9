"""What `qplan engines add arm` does where it cannot, and what it leaves."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from qplan.errors import BusyError, InputError, ToolError
from qplan.mnn.arm import add
from qplan.mnn.arm.apt import Deb
from qplan.mnn.arm.home import ArmEngine, arm_folder
from qplan.mnn.engines import EngineVersion
from tests.support.command import qplan


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("QPLAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_apt_it_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"apt-get and dpkg-deb are not on the PATH: .*Debian"):
        add.add_arm(lambda _: None)
    assert not arm_folder().parent.exists()


def test_two_at_once_are_not_let_in(tmp_path: Path) -> None:
    with add._alone(arm_folder()), pytest.raises(BusyError, match="another process works on"), add._alone(arm_folder()):
        pass


def test_an_engine_that_does_not_run_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator is a script that fails, so the draft is dropped and the engine of before stays."""
    wheel = tmp_path / "mnn-3.6.1-cp311.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("MNN/__init__.py", "")
    monkeypatch.setattr(add, "unpack", lambda deb, out: None)
    fetched = add._Fetched(Deb("qemu-user", "10", "q.deb", 1, "ab"), (), tmp_path, (wheel,))

    def emulator(says: str) -> None:
        def write(deb: Path, member: str, out: Path) -> None:
            out.write_text(f"#!/bin/sh\n{says}\n")
            out.chmod(0o755)

        monkeypatch.setattr(add, "unpack_file", write)

    emulator("echo 'no such cpu' >&2; exit 3")
    with pytest.raises(ToolError, match="MNN does not load on arm-v8") as failed:
        add._make(arm_folder(), fetched, "http://mirror", lambda _: None, sme2=False)
    assert "no such cpu" in str(failed.value)
    assert ArmEngine.find() is None
    emulator("echo 2.0.0")
    with pytest.raises(ToolError, match=r"it says '2\.0\.0'"):
        add._make(arm_folder(), fetched, "http://mirror", lambda _: None, sme2=False)
    emulator(f"echo {EngineVersion.installed()}")
    said: list[str] = []
    made = add._make(arm_folder(), fetched, "http://mirror", said.append, sme2=False)
    assert ArmEngine.find() == made
    assert said[1:] == ["trying it on arm-v8", "trying it on arm-dot", "trying it on arm-i8mm"]
    assert [(package.name, package.version) for package in made.manifest.packages] == [
        ("qemu-user", "10"),
        ("mnn", "3.6.1"),
    ]
    assert add.remove_arm()
    assert not add.remove_arm()


def test_the_commands_tell_what_is_there(tmp_path: Path) -> None:
    assert "not added" in qplan("engines", folder=tmp_path).stdout
    assert qplan("engines", "list", "--json", folder=tmp_path).document["arm"] is None
    removed = qplan("engines", "remove", "arm", "--json", folder=tmp_path).document
    assert (removed["removed"], removed["folder"]) == (False, str(arm_folder()))
    for command in ("add", "remove"):
        refused = qplan("engines", command, "x86", folder=tmp_path)
        assert refused.returncode == 2
        assert "engine 'x86' is unknown" in refused.stderr
