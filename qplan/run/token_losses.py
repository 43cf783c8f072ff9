"""Where in a text a built model differs: its KL to FP32 at every token, as an artifact that needs no model to read."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import decoding, read_json, write_json
from qplan.errors import DamagedArtifactError, InputError

KIND, SCHEMA = "qplan-token-losses", 1

_REMEDY = "make it again with 'qplan emit'"

Losses = NDArray[np.float32]
"""Nats ``[rows, seq_len]``: at each token, of the distribution of the one that follows."""


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """One model on the engine, token by token, one pass per sequence."""

    model: str
    """``plan``, or a uniform model such as ``int8``."""
    model_sha256: str
    text: str
    """What the tokens are, for people."""
    text_sha256: str
    tokens: tuple[tuple[str, ...], ...]
    """The text, a row per sequence, as the tokenizer splits it."""
    kl_nats: Mapping[str, Losses]
    """Losses by memory setting."""

    def write(self, path: Path) -> None:
        """Write the artifact atomically; losses as base64 of float32, little endian."""
        body = {
            "model": self.model,
            "text": self.text,
            "tokens": [list(row) for row in self.tokens],
            "kl_nats": {memory: _encode(values) for memory, values in self.kl_nats.items()},
        }
        write_json(path, KIND, SCHEMA, {"model": self.model_sha256, "text": self.text_sha256}, body)

    @classmethod
    def read(cls, path: Path) -> TokenLosses:
        """Read what `write` wrote.

        Raises:
            InputError: no such file, or losses and tokens do not belong together.
            StaleArtifactError: written by a newer qplan.
        """
        value = read_json(path, KIND, SCHEMA, remedy=_REMEDY)
        with decoding(path, _REMEDY):
            tokens = tuple(tuple(row) for row in value["tokens"])
            losses = {memory: _decode(coded) for memory, coded in value["kl_nats"].items()}
            texts = (value["model"], value["inputs"]["model"], value["text"], value["inputs"]["text"])
            if not all(isinstance(text, str) for text in (*texts, *(token for row in tokens for token in row))):
                msg = f"{path}: tokens, model and text must be texts"
                raise InputError(msg)
        for memory, found in losses.items():
            if found.shape != (shape := (len(tokens), len(tokens[0]) if tokens else 0)):
                msg = f"{path}: losses under memory {memory} have shape {found.shape}, the text {shape}; make it again"
                raise DamagedArtifactError(msg)
        return cls(*texts, tokens, losses)


def _encode(values: Losses) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")
    return {"shape": list(values.shape), "float32_base64": data}


def _decode(value: Mapping[str, Any]) -> Losses:
    flat = np.frombuffer(base64.b64decode(value["float32_base64"]), dtype="<f4")
    return flat.reshape(value["shape"]).astype(np.float32)
