"""Model folders made to do harm: what `qplan check` and ``qplan.Engine`` say, how fast, in what memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reports.faults.bench import ROOT, calm

LIMIT_S = 60

_LOOK = """
import json, sys, time, warnings
from pathlib import Path
def memory():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
import qplan
from qplan.errors import QplanError
from qplan.mnn.preflight import check_folder
how, folder = sys.argv[1:]
before, started = memory(), time.perf_counter()
try:
    if how == "check":
        said = sorted({f"{f.code} {f.severity}" for f in check_folder(Path(folder)).findings})
    else:
        with qplan.Engine(folder, timeout_s=30) as engine:
            said = ["logits" if engine.logits([1, 2, 3]).size else ""]
except QplanError as error:
    said = [type(error).__name__]
print(json.dumps({"said": said, "seconds": time.perf_counter() - started, "kb": memory() - before}))
"""


def _instead(make: Callable[[Path], None], name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def _setting(file: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(document | values), encoding="utf-8")

    return change


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _random(path: Path) -> None:
    path.symlink_to("/dev/random")


def _outside(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _itself(path: Path) -> None:
    path.symlink_to(path.name)


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(10 << 30)


def _text(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def _long_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.mtok").write_bytes(b"430 3\n" + b"9" * 5000 + b" 1 0\n0 \n")


FOLDERS: dict[str, Callable[[Path], None]] = {
    "good": lambda _: None,
    **{
        f"{what}: {name}": _instead(make, name)
        for name in ("config.json", "llm_config.json", "llm.mnn", "llm.mnn.weight", "tokenizer.mtok", "checksums.json")
        for what, make in (
            ("FIFO", os.mkfifo),
            ("link to /dev/zero", _endless),
            ("sparse file of 10 GB", _sparse),
        )
    },
    "link to /dev/random: llm.mnn.weight": _instead(_random, "llm.mnn.weight"),
    "link to /etc/passwd: llm.mnn": _instead(_outside, "llm.mnn"),
    "link to itself: config.json": _instead(_itself, "config.json"),
    "folder: llm.mnn": _instead(lambda path: path.mkdir(), "llm.mnn"),
    "llm_config names /dev/zero": _setting("config.json", llm_config="/dev/zero"),
    "llm_model names ../../etc/passwd": _setting("config.json", llm_model="../../../../../../etc/passwd"),
    "llm_weight names an absolute path": _setting("config.json", llm_weight="/etc/passwd"),
    "tokenizer_file is a list": _setting("config.json", tokenizer_file=["a"]),
    "name of 5,000 characters": _setting("config.json", llm_model="m" * 5000),
    "name with a zero byte": _setting("config.json", llm_model="llm\0.mnn"),
    "JSON 200,000 deep": _instead(_text('{"a":' * 200_000 + "1" + "}" * 200_000), "llm_config.json"),
    "number of 5,000 digits": _instead(_text('{"hidden_size": ' + "9" * 5000 + "}"), "llm_config.json"),
    "checksums 200,000 deep": _instead(_text("[" * 200_000), "checksums.json"),
    "tokenizer that counts 5,000 digits": _long_tokenizer,
    "hidden_size of 2^62": _setting("llm_config.json", hidden_size=1 << 62),
    "context of 2^62": _setting("llm_config.json", max_position_embeddings=1 << 62),
}


def folders(home: Path, done: Callable[[dict[str, Any]], None], *, quick: bool) -> None:
    """Look at every folder in a process of its own.

    Args:
        home: folder for it all.
        done: called with every row.
        quick: `qplan check` alone.
    """
    good = calm(home)[0]["report"] / "int8" / "model"
    for name, change in FOLDERS.items():
        folder = home / "hostile"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(folder)
        row: dict[str, Any] = {"part": "folders", "folder": name}
        for how in ("check",) if quick else ("check", "Engine"):
            row[how] = _look(how, folder)
        done(row)


def _look(how: str, folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    try:
        ran = subprocess.run(
            [sys.executable, "-c", _LOOK, how, str(folder)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"said": ["no answer"], "seconds": time.monotonic() - started, "kb": None}
    if ran.returncode:
        return {"said": [ran.stderr.strip().rpartition("\n")[2]], "seconds": None, "kb": None, "code": ran.returncode}
    found: dict[str, Any] = json.loads(ran.stdout)
    return found
