"""Makes the aarch64 engine from packages: the emulator, a small arm64 system with Python, and two wheels."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qplan.artifact import free_bytes, new_folder, no_space, remove_folder, sha256_file, writing
from qplan.errors import BusyError, InputError, ToolError
from qplan.mnn.arm.apt import Deb, PrivateApt, configured_mirror, signed_by_debian, unpack, unpack_file
from qplan.mnn.arm.home import MANIFEST_FILE, ArmEngine, Manifest, Package, arm_folder
from qplan.mnn.arm.processors import PROCESSORS
from qplan.mnn.child import run_tool
from qplan.mnn.engines import EngineVersion
from qplan.scratch import lock, remove_leftovers
from qplan.settings import Say

SYSTEM_SUITE = "bookworm"
"""Whose Python 3.11 MNN's wheels are for."""

EMULATOR_SUITES = {False: "trixie", True: "sid"}
"""By whether the emulator must know SME2, which takes qemu 10.1."""

SYSTEM_PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libssl3"),
    *("libuuid1", "libgomp1", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal"),
)
"""Python, and what it and the wheels link."""

EMULATOR = "qemu-user"

NUMPY = "2.2.6"

FETCHED_BYTES, KEPT_BYTES = 130e6, 180e6
"""Of what is fetched (package lists, packages, wheels), and of what stays, as measured."""

_PLATFORMS = ("manylinux_2_17_aarch64", "manylinux2014_aarch64")


@dataclass(frozen=True)
class _Fetched:
    """What lies in the folder of downloads."""

    emulator: Deb
    system: tuple[Deb, ...]
    debs: Path
    wheels: tuple[Path, ...]


def add_arm(say: Say, *, mirror: str | None = None, sme2: bool = False) -> ArmEngine:
    """Fetch packages and make the engine in the cache; an older one is replaced at the last moment.

    What was fetched before an interrupt is not fetched again.

    Args:
        say: called with a line about each step.
        mirror: of Debian; None for the one in apt's configuration.
        sme2: take an emulator that knows SME2.

    Raises:
        InputError: this system has no apt, pip or mirror.
        BusyError: another process does the same.
        StorageError: the disk is full.
        ToolError: a package could not be fetched, or the engine does not run.
    """
    _check_tools()
    home = arm_folder()
    mirror = mirror or configured_mirror()
    need = int(FETCHED_BYTES + KEPT_BYTES)
    with writing(home, need=need), _alone(home):
        if free_bytes(home) < need:
            raise no_space(home, need)
        say(f"about {FETCHED_BYTES / 1e6:.0f} MB to fetch; {KEPT_BYTES / 1e6:.0f} MB stay in {home}")
        fetched = _fetch(_downloads(home), mirror, say, sme2=sme2)
        engine = _make(home, fetched, mirror, say, sme2=sme2)
        remove_folder(_downloads(home))
    return engine


def remove_arm() -> bool:
    """Remove the engine, and what an unfinished `add_arm` fetched; False if there was neither.

    Raises:
        BusyError: another process makes it.
    """
    home = arm_folder()
    found = [folder for folder in (home, _downloads(home)) if folder.is_dir()]
    if found:
        with _alone(home):
            for folder in found:
                remove_folder(folder)
            remove_leftovers(home.parent)
    return bool(found)


def _check_tools() -> None:
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        msg = (
            f"{' and '.join(missing)} are not on the PATH: the ARM engine is made of Debian packages. Run this on "
            f"Debian or in a container of it, with the same cache folder ({arm_folder()})"
        )
        raise InputError(msg)
    if importlib.util.find_spec("pip") is None:
        msg = f"{sys.executable} has no pip, which fetches MNN's wheel; run '{sys.executable} -m ensurepip'"
        raise InputError(msg)


def _downloads(home: Path) -> Path:
    return home.with_name(f"{home.name}.downloads")


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.parent.mkdir(parents=True, exist_ok=True)
    path = home.with_name(f".{home.name}.lock")
    with path.open("w") as handle:
        if not lock(handle.fileno()):
            msg = f"another process works on {home}; wait for it"
            raise BusyError(msg)
        yield


def _fetch(downloads: Path, mirror: str, say: Say, *, sme2: bool) -> _Fetched:
    trust = signed_by_debian()
    here = run_tool(["dpkg", "--print-architecture"], "dpkg could not say what this machine is", hint="").strip()
    emulators = PrivateApt(downloads / "emulator", mirror, EMULATOR_SUITES[sme2], here, trust)
    systems = PrivateApt(downloads / "system", mirror, SYSTEM_SUITE, "arm64", trust)
    for apt in (emulators, systems):
        say(f"package list of {apt.suite} for {apt.architecture} from {mirror}")
        apt.update()
    (emulator,) = emulators.find([EMULATOR])
    system = systems.find(SYSTEM_PACKAGES)
    debs = downloads / "debs"
    for apt, wanted in ((emulators, (emulator,)), (systems, system)):
        size = sum(deb.bytes for deb in wanted)
        what = f"{wanted[0].name} {wanted[0].version}" if len(wanted) == 1 else f"{len(wanted)} packages"
        say(f"{what} of {apt.suite} for {apt.architecture}: {size / 1e6:.0f} MB")
        apt.download(wanted, debs)
    say(f"wheels of MNN {EngineVersion.installed()} and NumPy {NUMPY} for aarch64, by pip")
    return _Fetched(emulator, system, debs, _wheels(downloads / "wheels"))


def _wheels(out: Path) -> tuple[Path, ...]:
    out.mkdir(parents=True, exist_ok=True)
    wanted = {"numpy": NUMPY, "mnn": str(EngineVersion.installed())}
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    python = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--only-binary=:all:"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    names = [f"{name}=={version}" for name, version in wanted.items()]
    what = f"pip could not fetch {' and '.join(names)} for aarch64"
    run_tool([*pip, *python, *platforms, "--dest", str(out), *names], what, hint="is a package index reachable?")
    found = [next(out.glob(f"{name}-{version}-*.whl"), None) for name, version in wanted.items()]
    if None in found:
        msg = f"{what}: no such wheel came"
        raise ToolError(msg)
    return tuple(path for path in found if path is not None)


def _make(home: Path, fetched: _Fetched, mirror: str, say: Say, *, sme2: bool) -> ArmEngine:
    manifest = Manifest(
        mnn=str(EngineVersion.installed()),
        numpy=NUMPY,
        qemu=fetched.emulator.version,
        sme2=sme2,
        mirror=mirror,
        packages=(*map(_of_deb, (fetched.emulator, *fetched.system)), *map(_of_wheel, fetched.wheels)),
    )
    with new_folder(home, replace=True) as draft:
        say(f"unpacking into {home}")
        unpack_file(fetched.debs / fetched.emulator.file, "usr/bin/qemu-aarch64", draft / "qemu-aarch64")
        for deb in fetched.system:
            unpack(fetched.debs / deb.file, draft / "root")
        for wheel in fetched.wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(draft / "site")
        manifest.write(draft / MANIFEST_FILE)
        _try(ArmEngine(draft, manifest), say)
    return ArmEngine(home, manifest)


def _of_deb(deb: Deb) -> Package:
    return Package(deb.name, deb.version, deb.file, deb.sha256)


def _of_wheel(wheel: Path) -> Package:
    name, version, *_ = wheel.name.split("-")
    return Package(name, version, wheel.name, sha256_file(wheel))


_SAYS_VERSION = "import MNN.llm, importlib.metadata; print(importlib.metadata.version('MNN'))"


def _try(engine: ArmEngine, say: Say) -> None:
    """Load MNN on every processor."""
    names: Sequence[str] = [name for name, known in PROCESSORS.items() if engine.manifest.sme2 or not known.needs_sme]
    for name in names:
        say(f"trying it on {name}")
        command = [*engine.host(PROCESSORS[name]).words, "-c", _SAYS_VERSION]
        printed = run_tool(command, f"MNN does not load on {name}", hint="is the machine busy?", timeout_s=300)
        if printed.split()[-1:] != [engine.manifest.mnn]:
            msg = f"MNN {engine.manifest.mnn} was expected on {name}, and it says {printed.strip()[-80:]!r}"
            raise ToolError(msg)
