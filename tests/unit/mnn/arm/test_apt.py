"""Packages from a mirror that the test makes: found, fetched, unpacked; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qplan.artifact import sha256_file
from qplan.errors import ToolError
from qplan.mnn.arm.apt import PrivateApt, unpack, unpack_file

pytestmark = pytest.mark.skipif(
    shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None, reason="no apt-get or dpkg-deb here"
)

PACKAGES = {"hello": "1:2.0-1", "other": "3.1"}


def built(name: str, version: str, out: Path) -> Path:
    """A package for arm64 that holds one program."""
    tree = out / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: arm64\nMaintainer: a test\nDescription: {name}\n"
    )
    (tree / "usr" / "bin").mkdir(parents=True)
    (tree / "usr" / "bin" / name).write_text(f"I am {name}\n")
    deb = out / f"{name}_arm64.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, deb], check=True, capture_output=True)
    return deb


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with one suite, unsigned."""
    root = tmp_path_factory.mktemp("mirror")
    pool = root / "pool"
    pool.mkdir()
    entries = []
    for name, version in PACKAGES.items():
        deb = built(name, version, pool)
        control = (pool / name / "DEBIAN" / "control").read_text(encoding="utf-8")
        entries.append(f"{control}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {sha256_file(deb)}\n")
    lists = root / "dists" / "stable" / "main" / "binary-arm64"
    lists.mkdir(parents=True)
    packed = lists / "Packages"
    packed.write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8")
    (root / "dists" / "stable" / "Release").write_text(
        "Origin: Debian\nLabel: Debian\nSuite: stable\nCodename: stable\nArchitectures: arm64\nComponents: main\n"
        f"SHA256:\n {sha256_file(packed)} {packed.stat().st_size} main/binary-arm64/Packages\n"
    )
    return root


@pytest.fixture
def apt(mirror: Path, tmp_path: Path) -> PrivateApt:
    return PrivateApt(tmp_path / "apt", f"file:{mirror}", "stable", "arm64", "trusted=yes")


def test_packages_are_found_fetched_once_and_unpacked(apt: PrivateApt, tmp_path: Path) -> None:
    apt.update()
    hello, other = apt.find(["hello", "other"])
    assert (hello.name, hello.version, other.version) == ("hello", "1:2.0-1", "3.1")
    out = tmp_path / "debs"
    apt.download([hello, other], out)
    fetched = out / hello.file
    assert (fetched.stat().st_size, sha256_file(fetched)) == (hello.bytes, hello.sha256)
    unpack(fetched, tmp_path / "root")
    assert (tmp_path / "root" / "usr" / "bin" / "hello").read_text() == "I am hello\n"
    unpack_file(fetched, "usr/bin/hello", tmp_path / "alone")
    assert (tmp_path / "alone").read_text() == "I am hello\n"
    assert (tmp_path / "alone").stat().st_mode & 0o111

    # one that is whole stays, one that an interrupt cut is fetched again
    before = fetched.stat().st_mtime_ns
    (out / other.file).write_bytes(b"half")
    apt.download([hello, other], out)
    assert fetched.stat().st_mtime_ns == before
    assert sha256_file(out / other.file) == other.sha256


def test_what_the_mirror_lacks_is_named(apt: PrivateApt) -> None:
    apt.update()
    with pytest.raises(ToolError, match=r"does not offer hello, nothing for arm64 in stable"):
        apt.find(["hello", "nothing"])


def test_a_mirror_that_is_none_is_named(tmp_path: Path) -> None:
    apt = PrivateApt(tmp_path / "apt", f"file:{tmp_path}/none", "stable", "arm64", "trusted=yes")
    with pytest.raises(ToolError, match=rf"could not read the packages of stable at file:{tmp_path}/none"):
        apt.update()


def test_a_package_that_nobody_signed_is_not_taken(mirror: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.gpg"
    keys.touch()
    apt = PrivateApt(tmp_path / "apt", f"file:{mirror}", "stable", "arm64", f"signed-by={keys}")
    with pytest.raises(ToolError, match="could not read the packages"):
        apt.update()


def test_a_damaged_package_is_refused(tmp_path: Path, mirror: Path) -> None:
    bad = tmp_path / "bad.deb"
    bad.write_bytes((mirror / "pool" / "hello_arm64.deb").read_bytes()[:200])
    with pytest.raises(ToolError, match=r"bad\.deb"):
        unpack(bad, tmp_path / "out")
    with pytest.raises(ToolError, match=r"bad\.deb"):
        unpack_file(bad, "usr/bin/hello", tmp_path / "one")
    with pytest.raises(ToolError, match="holds no file usr/bin/none"):
        unpack_file(mirror / "pool" / "hello_arm64.deb", "usr/bin/none", tmp_path / "one")
