"""Wheel and sdist, built and tried in an environment of their own, with the libraries of this one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import qplan

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

DATA = """
from qplan.calib_sets import calib_sets
from qplan.cost.target import target_names
from qplan.report.page import environment
from qplan.report.words import Language, words_of
import qplan
assert "python-stdlib" in calib_sets()
assert "phone" in target_names()
for language in Language:
    words_of(language)
for name in ("report.html.j2", "report.md.j2"):
    environment().get_template(name)
print(qplan.__file__)
"""


@dataclass(frozen=True)
class Installed:
    """What was built, and a virtual environment that holds qplan from it alone."""

    wheel: Path
    sdist: Path
    home: Path

    def run(self, *command: str) -> str:
        """Run a program of the environment away from the checkout; returns what it prints."""
        program, *words = command
        known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        found = subprocess.run(
            [self.home / "bin" / program, *words],
            cwd=self.home,
            env=known | {"COLUMNS": "120", "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An sdist, the wheel that is built from it, and that wheel installed."""
    folder = tmp_path_factory.mktemp("distributions")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT))
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    home = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(home))
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    # a path by a .pth is no site folder: this environment's libraries are found, its editable qplan is not
    libraries = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    (libraries / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return Installed(wheel, sdist, home)


def run(*command: str) -> None:
    """Run a command that must succeed."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{' '.join(command)}\n{found.stdout}{found.stderr}"


def tracked(*folders: str) -> set[str]:
    """Paths that git holds below folders of the checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def test_the_wheel_holds_every_file_of_the_package_and_the_calibration_texts(installed: Installed) -> None:
    held = set(zipfile.ZipFile(installed.wheel).namelist())
    wanted = tracked("qplan") | {f"qplan/{name}" for name in tracked("calib")}
    assert wanted <= held, sorted(wanted - held)
    assert {name.partition("/")[0] for name in held} == {"qplan", f"qplan-{qplan.__version__}.dist-info"}


def test_the_sdist_holds_what_the_wheel_is_made_of_and_no_more(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked("qplan", "calib") <= held
    parts = {name.partition("/")[0] for name in held}
    files = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert parts == files | {"qplan", "calib"}


def test_what_is_installed_tells_its_version_and_helps(installed: Installed) -> None:
    assert installed.run("qplan", "--version").strip().endswith(qplan.__version__)
    assert "embedded model" in installed.run("qplan", "demo", "--help")


def test_what_is_installed_finds_its_data(installed: Installed) -> None:
    found = Path(installed.run("python", "-c", DATA).strip())
    assert found.is_relative_to(installed.home)


def test_what_is_installed_reads_the_embedded_model(installed: Installed) -> None:
    model = next(installed.home.glob("lib/python*/site-packages/qplan/demo/stdlib-3m"))
    said = installed.run("qplan", "analyze", str(model), "--dry-run", "--json", "--samples", "2", "--seq-len", "64")
    assert '"error": null' in said
