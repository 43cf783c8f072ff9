"""Token ids that a model is measured on, that rounding is fitted to, and that are held out."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import read_json, sha256_bytes, write_json
from qplan.errors import InputError

KIND, SCHEMA = "qplan-calibration", 1


Ids = NDArray[np.int64]
"""Token ids ``[sequences, seq_len]``."""


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Windows of a text as token ids."""

    tokens: Ids
    """int64 ``[samples, seq_len]``: what analyze measures on."""
    heldout: Ids
    """int64 ``[windows, seq_len]``, none of them among `tokens`: what a plan is verified on."""
    fit: Ids
    """int64 ``[windows, seq_len]``, none of them among the others if the text is long enough: rounding is fitted to
    these."""
    source: str
    """Description of the text, for people."""
    license: str | None
    seed: int
    """Seed of the permutation that chose the windows."""
    tokenizer_sha256: str

    @cached_property
    def sha256(self) -> str:
        """Hash of `tokens`: what a sensitivity table depends on."""
        return sha256_ids(self.tokens)

    @cached_property
    def heldout_sha256(self) -> str:
        """Hash of `heldout`."""
        return sha256_ids(self.heldout)

    @cached_property
    def fit_sha256(self) -> str:
        """Hash of `fit`."""
        return sha256_ids(self.fit)

    @property
    def samples(self) -> int:
        """Number of calibration sequences."""
        return len(self.tokens)

    @property
    def seq_len(self) -> int:
        """Tokens per sequence."""
        return int(self.tokens.shape[1])

    def write(self, path: Path) -> None:
        """Write ``calibration.json`` atomically; ids as base64 of int32, little endian."""
        body = {
            "source": self.source,
            "licence": self.license,
            "seed": self.seed,
            "tokens": _encode(self.tokens),
            "heldout": _encode(self.heldout),
            "fit": _encode(self.fit),
            "sha256": self.sha256,
            "heldout_sha256": self.heldout_sha256,
            "fit_sha256": self.fit_sha256,
        }
        write_json(path, KIND, SCHEMA, {"tokenizer": self.tokenizer_sha256}, body)

    @classmethod
    def read(cls, path: Path) -> CalibrationSet:
        """Read what `write` wrote.

        Raises:
            InputError: not a calibration set, or its ids do not match their hash.
            StaleArtifactError: written by a newer qplan.
        """
        value = read_json(path, KIND, SCHEMA)
        try:
            found = cls(
                _decode(value["tokens"]),
                _decode(value["heldout"]),
                _decode(value["fit"]),
                value["source"],
                value["licence"],
                value["seed"],
                value["inputs"]["tokenizer"],
            )
            hashes = (value["sha256"], value["heldout_sha256"], value["fit_sha256"])
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{path} is damaged ({type(error).__name__}: {error}); restore it or run 'qplan analyze' again"
            raise InputError(msg) from None
        if hashes != (found.sha256, found.heldout_sha256, found.fit_sha256):
            msg = f"{path}: the token ids do not match their sha256; the file was changed, make it again"
            raise InputError(msg)
        return found


def sha256_ids(ids: Ids) -> str:
    """Hash of token ids and their shape."""
    return sha256_bytes(repr(ids.shape).encode(), np.ascontiguousarray(ids, dtype="<i8").tobytes())


def _encode(ids: Ids) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(ids, dtype="<i4").tobytes()).decode("ascii")
    return {"shape": list(ids.shape), "int32_base64": data}


def _decode(value: dict[str, Any]) -> Ids:
    flat = np.frombuffer(base64.b64decode(value["int32_base64"]), dtype="<i4")
    return flat.reshape(value["shape"]).astype(np.int64)
