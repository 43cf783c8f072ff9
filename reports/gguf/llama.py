"""llama.cpp on one model: its files, made once, and what they compute."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.calibration import load_text
from qplan.errors import ToolError
from qplan.model.load import LoadedModel
from reports.gguf.tensors import write_tensors
from reports.gguf.tools import build_tools
from reports.peers.environment import prepare

HOME = Path(__file__).parent
PEER = "llama.cpp"
TYPES = ("Q4_0", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")


class LlamaCpp:
    """llama.cpp's own programs make the files, and its library in an environment of its own runs them."""

    def __init__(self, loaded: LoadedModel, environments: Path, folder: Path, calib: str) -> None:
        """Convert the model, and make an imatrix where llama.cpp knows its tokenizer.

        Args:
            loaded: the model.
            environments: where llama.cpp is installed and built.
            folder: of the files.
            calib: text of the imatrix.
        """
        self.tools, self._python = build_tools(environments), prepare(PEER, environments)
        self._folder, self._whole = folder, folder / "f32.gguf"
        folder.mkdir(parents=True, exist_ok=True)
        without = folder / "without-tokenizer"
        if not self._whole.is_file():
            try:
                whole_or_not(self._whole, lambda part: self.tools.convert(loaded.folder, part))
            except ToolError as error:  # a tokenizer that it does not know
                print(f"{error}\nconverted without a tokenizer: no imatrix", flush=True)
                without.touch()
                whole_or_not(self._whole, lambda part: self._convert(loaded, part))
        self.imatrix = None if without.is_file() else folder / "imatrix.gguf"
        """What the types are weighted with; None where there is none."""
        if self.imatrix is not None and not self.imatrix.is_file():
            print("llama.cpp: imatrix", flush=True)
            text = folder / "calibration.txt"
            text.write_text("\n".join(load_text(calib, loaded.tokenizer).documents), encoding="utf-8")
            whole_or_not(self.imatrix, lambda part: self.tools.imatrix(self._whole, text, part))

    def file(self, kind: str) -> Path:
        """The file of a type; `F32` is not quantized."""
        if kind == "F32":
            return self._whole
        path = self._folder / f"{kind}.gguf"
        if not path.is_file():
            whole_or_not(path, lambda part: self.tools.quantize(self._whole, part, kind, self.imatrix))
        return path

    def logits(self, path: Path, rows: NDArray[np.int64]) -> Path:
        """A file's logits on some rows of tokens, as ``.npy``; delete it."""
        tokens, out = self._folder / "tokens.npy", self._folder / "logits.npy"
        np.save(tokens, rows.astype(np.int32))
        self._call("logits", path, tokens, out)
        return out

    def tensor_bytes(self, path: Path) -> int:
        """Bytes of a file's tensors, without tokenizer and settings."""
        return int(json.loads(self._call("tensors", path)))

    def ram_bytes(self, path: Path) -> int:
        """Growth of resident memory by loading a file, not mapped."""
        return int(json.loads(self._call("load", path)))

    def _convert(self, loaded: LoadedModel, out: Path) -> None:
        weights = write_tensors(loaded, self._folder)
        self._call("convert", weights, out)
        weights.unlink()

    def _call(self, command: str, *arguments: object) -> str:
        line = [str(self._python), str(HOME / "native.py"), command, *map(str, arguments)]
        done = subprocess.run(line, check=False, capture_output=True, text=True)
        if done.returncode:
            msg = f"llama.cpp cannot {command}"
            raise ToolError(msg, command=" ".join(line), code=done.returncode, tail=done.stderr[-2000:])
        return done.stdout


def whole_or_not(path: Path, make: Callable[[Path], None]) -> None:
    """Make a file under another name, and give it its own once it is whole."""
    part = path.with_name(f"part-{path.name}")
    make(part)
    part.rename(path)
