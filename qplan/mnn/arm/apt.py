"""Debian packages of any suite and architecture, by apt with settings of its own: nothing is installed."""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from qplan.artifact import sha256_file, write_text
from qplan.errors import InputError, ToolError
from qplan.mnn.child import Child, program, run_tool

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Debian's keys, with which apt checks package lists."""

_HINT = "is the mirror reachable? Give another with --mirror"
_URI = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<bytes>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")


@dataclass(frozen=True)
class Deb:
    """A package as a mirror offers it."""

    name: str
    version: str
    file: str
    bytes: int
    sha256: str


def configured_mirror() -> str:
    """The Debian mirror that this system's own apt uses.

    Raises:
        InputError: it uses none.
        ToolError: apt failed.
    """
    wanted = ["--format", "$(LABEL) $(SITE)", "Created-By: Packages", "Component: main"]
    printed = run_tool(["apt-get", "indextargets", *wanted], "apt could not say what mirror it uses", hint=_HINT)
    sites = [site for label, _, site in (line.partition(" ") for line in printed.splitlines()) if label == "Debian"]
    if not sites:
        msg = "this system's apt has no Debian mirror; give one with --mirror URL"
        raise InputError(msg)
    return sites[0]


def signed_by_debian() -> str:
    """What makes apt accept only what Debian signed.

    Raises:
        InputError: Debian's keys are not there.
    """
    if not KEYRING.is_file():
        msg = f"{KEYRING} is not there, with which packages are checked; install debian-archive-keyring"
        raise InputError(msg)
    return f"signed-by={KEYRING}"


@dataclass(frozen=True)
class PrivateApt:
    """apt for one suite and architecture, with state, cache and sources in a folder of its own."""

    folder: Path
    mirror: str
    suite: str
    architecture: str
    trust: str
    """Option of the source, such as `signed_by_debian`'s."""

    def update(self) -> None:
        """Fetch the list of packages.

        Raises:
            ToolError: apt failed.
        """
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        options = f"arch={self.architecture} {self.trust}"
        write_text(self.folder / "sources.list", f"deb [{options}] {self.mirror} {self.suite} main\n")
        write_text(self._config, self._settings())
        self._run(["update"], f"apt could not read the packages of {self.suite} at {self.mirror}")

    def find(self, packages: Sequence[str]) -> tuple[Deb, ...]:
        """What the mirror offers of some packages.

        Raises:
            ToolError: apt failed, or the mirror lacks one.
        """
        what = f"{self.mirror} does not offer {', '.join(packages)} for {self.architecture} in {self.suite}"
        printed = self._run(["--print-uris", "download", *packages], what)
        found = {deb.name: deb for deb in map(_deb, _URI.finditer(printed))}
        missing = [name for name in packages if name not in found]
        if missing:
            msg = f"{self.mirror} does not offer {', '.join(missing)} for {self.architecture} in {self.suite}"
            raise ToolError(msg, tail=printed)
        return tuple(found[name] for name in packages)

    def download(self, debs: Sequence[Deb], out: Path) -> None:
        """Fetch packages; those that are there and whole stay.

        Raises:
            ToolError: apt failed, or a file is not what the list says.
        """
        out.mkdir(parents=True, exist_ok=True)
        left = [deb for deb in debs if not _is_whole(out / deb.file, deb)]
        if left:
            names = [f"{deb.name}={deb.version}" for deb in left]
            self._run(["download", *names], f"apt could not fetch packages from {self.mirror}", cwd=out)
        for deb in left:
            if not _is_whole(out / deb.file, deb):
                msg = f"{out / deb.file} is not what the list of {self.suite} at {self.mirror} says; try again"
                raise ToolError(msg)

    @property
    def _config(self) -> Path:
        return self.folder / "apt.conf"

    def _settings(self) -> str:
        settings = {
            "APT::Architecture": self.architecture,
            "APT::Sandbox::User": "root",  # the folder is the caller's, and no other user's
            "Acquire::Languages": "none",
            "Dir::State": self.folder / "state",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "Dir::Etc::SourceList": self.folder / "sources.list",
            "Dir::Etc::SourceParts": self.folder / "no-sources",
        }
        lines = [f'{key} "{value}";\n' for key, value in settings.items()]
        return f'APT::Architectures {{ "{self.architecture}"; }};\n' + "".join(lines)

    def _run(self, words: Sequence[str], what: str, cwd: Path | None = None) -> str:
        environment = {"APT_CONFIG": str(self._config), "LC_ALL": "C"}
        return run_tool(["apt-get", "-qq", *words], what, hint=_HINT, cwd=cwd, environment=environment)


def _deb(match: re.Match[str]) -> Deb:
    name, version, _ = match["file"].split("_", 2)
    return Deb(name, unquote(version), match["file"], int(match["bytes"]), match["sha256"])


def _is_whole(path: Path, deb: Deb) -> bool:
    return path.is_file() and path.stat().st_size == deb.bytes and sha256_file(path) == deb.sha256


def unpack(deb: Path, out: Path) -> None:
    """Unpack a package.

    Raises:
        ToolError: it is damaged.
    """
    run_tool(["dpkg-deb", "-x", str(deb), str(out)], f"{deb} could not be unpacked", hint="is the disk full?")


def unpack_file(deb: Path, member: str, out: Path) -> None:
    """Write one file of a package, which may be large otherwise, and may be run.

    Raises:
        ToolError: it is damaged, or holds no such file.
    """
    try:
        with (
            Child(
                [program("dpkg-deb"), "--fsys-tarfile", str(deb)], cwd=Path.cwd(), stderr=subprocess.DEVNULL
            ) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as archive,
        ):
            for entry in archive:
                content = archive.extractfile(entry) if entry.name.removeprefix("./") == member else None
                if content is not None:
                    out.write_bytes(content.read())
                    out.chmod(0o755)
                    return
    except tarfile.TarError as error:
        msg = f"{deb} could not be unpacked: {error}"
        raise ToolError(msg) from None
    msg = f"{deb} holds no file {member}"
    raise ToolError(msg)
