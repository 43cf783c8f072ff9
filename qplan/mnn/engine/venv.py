"""Virtual environments, each with one release of MNN: installed by pip when the user asks for it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from qplan.errors import ToolError
from qplan.mnn.child import run_tool
from qplan.mnn.engines import PYTHON_LLM, EngineVersion
from qplan.mnn.host import EngineHost, python_host
from qplan.settings import Say

_NATIVE = ("_tools*", "_mnncengine*", "MNN", "mnn.libs", "MNN.libs")
"""What the MNN package consists of."""


ENGINES_FOLDER = Path("qplan-engines")
"""Default folder for environments, below the working folder."""


@dataclass(frozen=True)
class EngineVenv:
    """A release of MNN in an environment of its own."""

    version: EngineVersion
    folder: Path

    @classmethod
    def of(cls, version: EngineVersion, home: Path = ENGINES_FOLDER) -> EngineVenv:
        """The environment of a version in the folder ``home``; it need not exist."""
        return cls(version, home / str(version))

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def host(self) -> EngineHost:
        """What runs its engine."""
        return python_host(self.python)

    def make(self, say: Say) -> None:
        """Make it, unless it is there.

        Raises:
            ToolError: pip failed.
        """
        done = self.folder / "qplan-installed"
        if done.is_file():
            return
        say(f"MNN {self.version}: making {self.folder} with pip")
        _run([sys.executable, "-m", "venv", "--clear", str(self.folder)], "making a virtual environment failed")
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, f"MNN=={self.version}", "numpy"], f"pip could not install MNN {self.version}")
        done.touch()

    def converter(self, shim: Path) -> Path:
        """Fill a folder with only this release's MNN package, to go before the site-packages of another Python.

        Raises:
            ToolError: the environment holds no converter.
        """
        packages = next(self.folder.glob("lib/python*/site-packages"), None)
        parts = [] if packages is None else [part for name in _NATIVE for part in packages.glob(name)]
        if not any(part.name.startswith("_tools") for part in parts):
            msg = f"{self.folder} holds no converter; remove the folder and measure again"
            raise ToolError(msg)
        shim.mkdir(parents=True)
        for part in parts:
            (shim / part.name).symlink_to(part.resolve())
        return shim


def released(*, pip: str = sys.executable) -> tuple[EngineVersion, ...]:
    """Every release of MNN that pip finds and that has ``MNN.llm``, oldest first.

    Raises:
        ToolError: pip failed, or found none.
    """
    output = _run([pip, "-m", "pip", "index", "versions", "MNN"], "pip could not list the releases of MNN")
    match = re.search(r"Available versions:(.*)", output)
    found = {EngineVersion.parse(word) for word in re.findall(r"\b\d+\.\d+\.\d+\b", match[1] if match else "")}
    versions = tuple(sorted(version for version in found if version >= PYTHON_LLM))
    if not versions:
        msg = "pip finds no release of MNN with MNN.llm; is a package index reachable?"
        raise ToolError(msg, tail=output[-1000:])
    return versions


def _run(command: list[str], what: str) -> str:
    return run_tool(command, what, hint="is a package index reachable?")
