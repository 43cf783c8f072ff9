"""Where the ARM engine lies, whether it can be used, and how it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from qplan.errors import DamagedArtifactError, InputError
from qplan.mnn.arm.home import MANIFEST_FILE, ArmEngine, Manifest, Package, arm_folder, require_arm
from qplan.mnn.arm.processors import find_processor
from qplan.mnn.engines import EngineVersion

INSTALLED = str(EngineVersion.installed())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("QPLAN_CACHE", str(tmp_path))
    return tmp_path


def added(mnn: str = INSTALLED, *, sme2: bool = False) -> ArmEngine:
    manifest = Manifest(mnn, "2.2.6", "10.0", sme2, "http://mirror", (Package("libc6", "2.36", "libc6.deb", "ab"),))
    manifest.write(arm_folder() / MANIFEST_FILE)
    found = ArmEngine.find()
    assert found is not None
    assert found.manifest == manifest
    return found


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert arm_folder() == cache / "engines" / "arm"
    monkeypatch.delenv("QPLAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert arm_folder() == Path("/x/qplan/engines/arm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert arm_folder() == Path.home() / ".cache" / "qplan" / "engines" / "arm"


def test_a_cache_in_this_folder_is_found_from_another(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cache)
    monkeypatch.setenv("QPLAN_CACHE", "here")
    assert arm_folder() == cache / "here" / "engines" / "arm"
    (words, *_) = added().host(find_processor("arm-dot")).words
    assert words == str(cache / "here" / "engines" / "arm" / "qemu-aarch64")


def test_without_it_a_proof_is_refused_with_the_command(cache: Path) -> None:
    assert ArmEngine.find() is None
    with pytest.raises(InputError, match=r"--prove arm-dot needs .*; run 'qplan engines add arm' first"):
        require_arm(("arm-dot",), "--prove arm-dot")
    with pytest.raises(InputError, match="run 'qplan engines add arm --sme2' first"):
        require_arm(("arm-sme2",), "--prove arm-sme2")


def test_one_of_another_version_is_refused(cache: Path) -> None:
    added("3.5.0", sme2=True)
    with pytest.raises(
        InputError, match=rf"MNN 3\.5\.0, the installed one is {INSTALLED}.*'qplan engines add arm --sme2'"
    ):
        require_arm(("arm-v8",), "--prove arm-v8")


def test_an_emulator_that_is_too_old_for_a_processor_is_refused_for_that_one_alone(cache: Path) -> None:
    engine = added()
    assert require_arm(("arm-v8", "arm-i8mm"), "x") == engine
    with pytest.raises(InputError, match=r"qemu 10\.0, does not know arm-sme2; run 'qplan engines add arm --sme2'"):
        require_arm(("arm-v8", "arm-sme2"), "--prove arm-v8,arm-sme2")
    assert require_arm(("arm-sme2",), "x") if added(sme2=True) else None


def test_a_manifest_that_was_changed_is_refused_with_the_command(cache: Path) -> None:
    path = added().folder / MANIFEST_FILE
    path.write_text(path.read_text(encoding="utf-8").replace("10.0", "11.0"), encoding="utf-8")
    with pytest.raises(DamagedArtifactError, match="qplan engines add arm"):
        ArmEngine.find()


def test_a_command_names_processor_system_and_script(cache: Path) -> None:
    engine = added()
    host = engine.host(find_processor("arm-dot"))
    command = host.command("engine/probe_child.py", ["a"])
    assert command[0] == str(engine.folder / "qemu-aarch64")
    assert command[command.index("-cpu") + 1] == "cortex-a76"
    assert command[command.index("-L") + 1] == str(engine.folder / "root")
    assert Path(command[-2]).is_file()
    assert command[-1] == "a"
    assert host.patience > 10
