"""llama.cpp's own programs, built from the sources that the package llama-cpp-python carries."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qplan.errors import InputError, ToolError

PACKAGE = "llama-cpp-python==0.3.36"
PROGRAMS = ("llama-quantize", "llama-imatrix", "llama-bench")
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    *(
        f"-DLLAMA_{part}=OFF"
        for part in ("CURL", "OPENSSL", "BUILD_SERVER", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_UI")
    ),
)
_REPEATS = 2
CHUNK_TOKENS, IMATRIX_CHUNKS = 512, 24
IMATRIX_TOKENS = CHUNK_TOKENS * IMATRIX_CHUNKS
"""As many as qplan's analysis takes in `reports.smollm2`, those that rounding is fitted to included."""


@dataclass(frozen=True)
class Speed:
    """Of one file."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Tools:
    """The programs, and the sources that they were built from."""

    home: Path

    @property
    def source(self) -> Path:
        """llama.cpp's sources."""
        return self.home / "source" / "vendor" / "llama.cpp"

    def convert(self, model: Path, out: Path) -> None:
        """Make a GGUF file in F32 of a Hugging Face folder, tokenizer included.

        Raises:
            ToolError: the converter does not know the architecture or the tokenizer.
        """
        path = os.pathsep.join(filter(None, (str(self.source / "gguf-py"), os.environ.get("PYTHONPATH"))))
        script = str(self.source / "convert_hf_to_gguf.py")
        words = [sys.executable, script, str(model), "--outtype", "f32", "--outfile", str(out)]
        _run(words, PYTHONPATH=path)

    def imatrix(self, whole: Path, text: Path, out: Path) -> None:
        """Make an imatrix on the beginning of a text.

        Raises:
            ToolError: the program failed.
        """
        counts = ["-c", str(CHUNK_TOKENS), "--chunks", str(IMATRIX_CHUNKS)]
        _run([self._program("llama-imatrix"), "-m", str(whole), "-f", str(text), "-o", str(out), *counts])

    def quantize(self, whole: Path, out: Path, kind: str, imatrix: Path | None) -> None:
        """Quantize a file.

        Raises:
            ToolError: the program failed.
        """
        by = [] if imatrix is None else ["--imatrix", str(imatrix)]
        _run([self._program("llama-quantize"), *by, str(whole), str(out), kind, "1"])

    def speed(self, path: Path, threads: int, prompt: int, decode: int) -> Speed:
        """Time a prompt, and tokens after none: one thread by its processor time, several by the clock.

        Raises:
            ToolError: the program failed.
        """

        def rate(tokens: int, *counts: object) -> float:
            words = [self._program("llama-bench"), "-m", str(path), "-t", str(threads), "-o", "json", *map(str, counts)]
            if threads > 1:
                return float(json.loads(_run([*words, "-r", "1"]))[0]["avg_ts"])
            # what loading and warming up take is in both
            seconds = [_processor_s([*words, "-r", str(repeats)]) for repeats in (1, 1 + _REPEATS)]
            return _REPEATS * tokens / (seconds[1] - seconds[0])

        return Speed(rate(prompt, "-p", prompt, "-n", 0), rate(decode, "-p", 0, "-n", decode))

    def _program(self, name: str) -> str:
        return str(self.home / "build" / "bin" / name)


def build_tools(parent: Path) -> Tools:
    """Build the programs, or find them built: some minutes, with cmake and a C++ compiler.

    Args:
        parent: folder that holds the environments.

    Raises:
        InputError: there is no cmake.
        ToolError: the package cannot be had or built.
    """
    home = parent / "llama.cpp-tools"
    stamp = home / "built.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == PACKAGE:
        return Tools(home)
    if shutil.which("cmake") is None:
        msg = "there is no cmake to build llama.cpp with; install cmake and a C++ compiler"
        raise InputError(msg)
    print(f"building {', '.join(PROGRAMS)} from {PACKAGE} in {home}", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    _run([*pip, "--dest", str(home), PACKAGE])
    archive = next(home.glob("*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(home, filter="data")
    (home / archive.name.removesuffix(".tar.gz")).rename(home / "source")
    archive.unlink()
    tools, build = Tools(home), str(home / "build")
    _run(["cmake", "-S", str(tools.source), "-B", build, *_OPTIONS])
    _run(["cmake", "--build", build, "--parallel", str(os.cpu_count() or 1), "--target", *PROGRAMS])
    stamp.write_text(PACKAGE, encoding="utf-8")
    return tools


def _processor_s(words: Sequence[str]) -> float:
    """Processor time of a program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    _run(words)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def _run(words: Sequence[str], **environment: str) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        msg = f"{Path(words[0]).name} failed"
        raise ToolError(msg, command=" ".join(words), code=done.returncode, tail=(done.stdout + done.stderr)[-2000:])
    return done.stdout
