"""Where the aarch64 engine lies, what it was made of, and the processes that run it."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from qplan.artifact import body_of, is_there, read_json, write_json
from qplan.errors import InputError
from qplan.mnn.arm.processors import Processor, find_processor
from qplan.mnn.engines import EngineVersion
from qplan.mnn.host import EngineHost
from qplan.run.decode import decode_artifact

KIND, SCHEMA = "qplan-arm-engine", 1
MANIFEST_FILE = "manifest.json"
ADD_COMMAND = "qplan engines add arm"

PATIENCE = 80.0
"""Emulated, MNN's engine takes 40 to 80 times as long as the same on x86 (``reports/arm``)."""


def cache_folder() -> Path:
    """Where what is downloaded for qplan lies: ``QPLAN_CACHE``, else ``qplan`` in the user's cache folder."""
    given = os.environ.get("QPLAN_CACHE")
    if given:  # processes that are started from it have working folders of their own
        return Path(given).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home).absolute() if home else Path.home() / ".cache") / "qplan"


def arm_folder() -> Path:
    """Where the aarch64 engine lies, or would."""
    return cache_folder() / "engines" / "arm"


@dataclass(frozen=True)
class Package:
    """A file that was fetched."""

    name: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an aarch64 engine was made of."""

    mnn: str
    """Version of the engine."""
    numpy: str
    qemu: str
    """Version of the emulator."""
    sme2: bool
    """Whether the emulator knows SME2."""
    mirror: str
    """Where the Debian packages come from."""
    packages: tuple[Package, ...]

    def write(self, path: Path) -> None:
        """Write it atomically."""
        write_json(path, KIND, SCHEMA, {}, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read it.

        Raises:
            InputError: not a manifest.
            StaleArtifactError: written by a newer qplan.
        """
        remedy = f"make it again with '{ADD_COMMAND}'"
        return decode_artifact(cls, body_of(read_json(path, KIND, SCHEMA, remedy=remedy)), path, remedy)


@dataclass(frozen=True)
class ArmEngine:
    """MNN's aarch64 engine with the emulator that runs it."""

    folder: Path
    manifest: Manifest

    @classmethod
    def find(cls) -> ArmEngine | None:
        """The engine in the cache; None if it was not added.

        Raises:
            InputError: its manifest is damaged.
        """
        path = arm_folder() / MANIFEST_FILE
        return cls(path.parent, Manifest.read(path)) if is_there(path) else None

    @property
    def python(self) -> Path:
        """The interpreter, for an aarch64 machine."""
        return self.folder / "root" / "usr" / "bin" / "python3.11"

    def host(self, processor: Processor) -> EngineHost:
        """What runs the engine on a processor."""
        settings = {"PYTHONPATH": self.folder / "site", "PYTHONHOME": "/usr"}
        words = [str(self.folder / "qemu-aarch64"), "-cpu", processor.cpu, "-L", str(self.folder / "root")]
        words += ["-U", "LD_PRELOAD", *(word for key, value in settings.items() for word in ("-E", f"{key}={value}"))]
        return EngineHost((*words, str(self.python), "-B"), PATIENCE)

    def missing(self, processors: tuple[str, ...]) -> str:
        """Why these processors cannot be emulated, with the remedy; empty if they can."""
        installed = str(EngineVersion.installed())
        if self.manifest.mnn != installed:
            return (
                f"the ARM engine in {self.folder} is MNN {self.manifest.mnn}, the installed one is {installed}; run "
                f"'{self.add_command}' again"
            )
        without = [name for name in processors if find_processor(name).needs_sme and not self.manifest.sme2]
        if without:
            return (
                f"the emulator in {self.folder}, qemu {self.manifest.qemu}, does not know {', '.join(without)}; run "
                f"'{ADD_COMMAND} --sme2'"
            )
        return ""

    @property
    def add_command(self) -> str:
        """The command that makes it again with what it has."""
        return shlex.join([*ADD_COMMAND.split(), *(["--sme2"] if self.manifest.sme2 else [])])


def arm_is_there() -> bool:
    """Whether it was added, whatever it is good for."""
    return is_there(arm_folder() / MANIFEST_FILE)


def require_arm(processors: tuple[str, ...], asked: str) -> ArmEngine:
    """The engine, able to run on some processors.

    Args:
        processors: their names.
        asked: what the user gave, for the message.

    Raises:
        InputError: it was not added, is another version than the installed engine, or its emulator is too old.
    """
    engine = ArmEngine.find()
    if engine is None:
        sme2 = any(find_processor(name).needs_sme for name in processors)
        command = f"{ADD_COMMAND} --sme2" if sme2 else ADD_COMMAND
        msg = f"{asked} needs MNN's ARM engine, which {arm_folder()} does not hold; run '{command}' first"
        raise InputError(msg)
    why = engine.missing(processors)
    if why:
        msg = f"{asked}: {why}"
        raise InputError(msg)
    return engine
