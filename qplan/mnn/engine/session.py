"""MNN's engine with one model folder, in a child process, which may crash without taking its parent down.

For qplan's own measurements of folders that it built: checks requests, not folders. Users have `qplan.Engine`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qplan.errors import InputError, ToolError
from qplan.mnn.engine.passes import passes
from qplan.mnn.engine.process import EngineProcess
from qplan.mnn.engine.requests import TokenIds, checked_count, checked_positions, checked_text, checked_tokens
from qplan.mnn.files import CONFIG_FILE, GRAPH_FILE
from qplan.mnn.graph.binary import LINEAR_ATTENTION, read_binary_graph
from qplan.mnn.host import THIS_PYTHON, EngineHost
from qplan.mnn.runtime import RuntimeConfig

Logits = NDArray[np.float32]
"""``[tokens, vocabulary]``."""


@dataclass(frozen=True)
class Step:
    """One token of a greedy continuation."""

    token: int
    text: str
    """Characters that it completes; empty within a character of several tokens."""
    seconds: float
    """Duration of the pass that made it."""


@dataclass(frozen=True)
class Score:
    """A token after a position."""

    log_probability_nats: float
    likeliest: bool
    """Whether no other token is more likely there."""


@dataclass(frozen=True)
class SpeedSample:
    """Seconds of single runs, without the warm-up."""

    prompt_tokens: int
    prefill_s: tuple[float, ...]
    """One per repeat."""
    decode_s: tuple[float, ...]
    """One per decoded token, all repeats."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prefill speed, from the fastest repeat."""
        return self.prompt_tokens / min(self.prefill_s)

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode speed, from the median token: the cache grows, so the fastest token is merely the first."""
        return 1 / float(np.median(self.decode_s))


class EngineSession:
    """A model folder on the real engine.

    Starts a process and loads the model; use it in a ``with`` block, or call `close`.
    """

    def __init__(
        self,
        folder: Path,
        runtime: RuntimeConfig | None = None,
        *,
        context: int | None = None,
        timeout_s: float = 1800,
        host: EngineHost = THIS_PYTHON,
    ) -> None:
        """Load a model.

        Args:
            folder: built or exported MNN folder.
            runtime: settings of the engine; None is memory low, 1 thread.
            context: longest sequence in tokens, None if unknown; longer ones are refused.
            timeout_s: seconds until a request counts as hung and the process is killed; times the host's patience.
            host: runs the engine.

        Raises:
            InputError: no model there.
            ToolError: the engine does not load it, crashes or hangs.
        """
        self.folder, self._config = folder, _config_of(folder)
        self.runtime = runtime or RuntimeConfig()
        self.context = context
        self.timeout_s = timeout_s
        self.host = host
        self._owner = os.getpid()
        self._process: EngineProcess | None = None
        self._loaded: dict[str, Any] = {}
        self._used = False
        self.restart()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process is not None and self._process.alive

    @property
    def foreign(self) -> bool:
        """Whether the process belongs to the process that this one was forked from."""
        return self._owner != os.getpid()

    @property
    def version(self) -> str:
        """Version of the engine's MNN."""
        return str(self._loaded["version"])

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return int(self._loaded["vocabulary"])

    @property
    def ram_bytes(self) -> int:
        """Growth of the process's resident memory by loading the model; 0 where the system does not report it."""
        return int(self._loaded["ram_bytes"])

    @property
    def load_s(self) -> float:
        """Seconds that loading took."""
        return float(self._loaded["load_s"])

    def restart(self) -> None:
        """Start a new process and load the model again, e.g. after a crash.

        Raises:
            ToolError: the engine does not load it.
        """
        self.close()
        self._process = EngineProcess(self.host)
        try:
            self._load()
        except BaseException:  # also an interrupt: no one would end it
            self.close()
            raise

    def load(self, folder: Path, runtime: RuntimeConfig) -> None:
        """Load another model into the same process, which saves the start of one.

        Raises:
            InputError: no model there.
            ToolError: the engine does not load it, crashes or hangs.
        """
        self.folder, self._config, self.runtime = folder, _config_of(folder), runtime
        self.__dict__.pop("_keeps_state", None)
        self._load()

    def _load(self) -> None:
        self._used = False
        settings = self.runtime.to_json()
        self._loaded = self._ask(command="load", config=str(self._config.resolve()), settings=settings)

    def checked(self, token_ids: object, more: int = 0) -> list[int]:
        """Tokens that this model can take, followed by ``more`` others.

        Raises:
            InputError: no tokens, too many, not whole numbers, or outside of the vocabulary.
        """
        return checked_tokens(token_ids, self.vocabulary, self.context, more)

    def logits(self, token_ids: TokenIds) -> Logits:
        """Logits of every position, float32 ``[tokens, vocabulary]``, in one pass.

        Raises:
            InputError: see `checked`.
            ToolError: the engine failed.
        """
        return self._logits("logits", token_ids)

    def logits_stepwise(self, token_ids: TokenIds) -> Logits:
        """Logits of every position, float32 ``[tokens, vocabulary]``, token by token as generation computes them.

        Raises:
            InputError: see `checked`.
            ToolError: the engine failed.
        """
        return self._logits("stepwise", token_ids)

    def logits_in_parts(self, token_ids: TokenIds, parts: Sequence[int]) -> Logits:
        """Logits of every position, float32 ``[tokens, vocabulary]``, in passes over so many tokens each.

        Raises:
            InputError: see `checked`, or the parts are not all of the sequence.
            ToolError: the engine failed.
        """
        ids = self.checked(token_ids)
        if sum(parts) != len(ids) or min(parts) < 1:
            msg = f"parts of {', '.join(map(str, parts))} tokens are no division of {len(ids)}"
            raise InputError(msg)
        return self._logits("in_parts", ids, parts=list(parts))

    def score(self, token_ids: TokenIds, wanted: Sequence[tuple[int, int]]) -> list[Score]:
        """How likely tokens are after positions of a sequence, as a prefill computes it.

        The same as from `logits`, but these stay in the engine's process, and are made only from where they are wanted.

        Args:
            token_ids: the sequence.
            wanted: positions in it from 0, each with the token that may follow the tokens up to there.

        Raises:
            InputError: see `checked`; no position, or one outside of the sequence.
            ToolError: the engine failed, or its logits are not finite.
        """
        ids = self.checked(token_ids)
        pairs = checked_positions(wanted, len(ids), self.vocabulary)
        parts = passes(len(ids), min(position for position, _ in pairs), self.vocabulary)
        self._begin(parts[0])
        return [Score(*found) for found in self._ask(command="score", ids=ids, wanted=pairs, parts=parts)["scores"]]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a chat template.

        Raises:
            InputError: not a text, or one that no tokenizer can take.
            ToolError: the engine failed.
        """
        return [int(token) for token in self._ask(command="encode", prompt=checked_text(text))["ids"]]

    def chat(self, message: str) -> str:
        """A user's message in the model's chat template, up to where the answer begins; as it is without a template.

        Raises:
            InputError: not a text, or one that no tokenizer can take.
            ToolError: the engine failed.
        """
        return str(self._ask(command="chat", prompt=checked_text(message))["text"])

    def begin(self, token_ids: TokenIds) -> Step:
        """Prefill a prompt and give the likeliest next token; `step` continues.

        Raises:
            InputError: see `checked`.
            ToolError: the engine failed, or its logits are not finite.
        """
        ids = self.checked(token_ids)
        self._begin(len(ids))
        return Step(**self._ask(command="begin", ids=ids))

    def step(self, token: int) -> Step:
        """Add a token to what `begin` and earlier steps left in the cache, and give the likeliest next one.

        Raises:
            InputError: a token outside of the vocabulary.
            ToolError: the engine failed, or its logits are not finite.
        """
        return Step(**self._ask(command="step", token=self.checked([token])[0]))

    def measure_speed(
        self,
        prompt_tokens: int = 128,
        decode_tokens: int = 32,
        repeats: int = 5,
        *,
        least: int = 1,
        enough_s: float | None = None,
        own_time: bool = False,
        warm_up: bool = True,
    ) -> SpeedSample:
        """Time prefill and decode, logits of the last position only, as in generation.

        Args:
            prompt_tokens: length of the prefill.
            decode_tokens: tokens after it, one at a time.
            repeats: how often both are timed at most, after a warm-up.
            least: how often at least.
            enough_s: seconds after which no further repeat is begun; None to time all of them.
            own_time: measure the thread's CPU time, not wall time: the same on an idle machine, and undisturbed by
                other processes on a busy one. For one thread only.
            warm_up: run a prompt and a few tokens first.

        Raises:
            InputError: a count below 1, or a sequence beyond the context.
            ToolError: the engine failed.
        """
        for name, count in (("prompt_tokens", prompt_tokens), ("decode_tokens", decode_tokens), ("repeats", repeats)):
            checked_count(name, count)
        if own_time and self.runtime.threads > 1:
            msg = f"CPU time of {self.runtime.threads} threads: those that the engine starts cannot be measured; use 1"
            raise InputError(msg)
        # any tokens cost the same; spread over the vocabulary, as text is
        ids = [(7919 * step) % self.vocabulary for step in range(prompt_tokens)]
        ids = self.checked(ids, decode_tokens)
        self._begin(len(ids))
        reply = self._ask(
            command="speed",
            ids=ids,
            decode_tokens=decode_tokens,
            repeats=repeats,
            least=repeats if enough_s is None else least,
            enough_s=enough_s or 0.0,
            own_time=own_time,
            warm_up=warm_up,
        )
        return SpeedSample(prompt_tokens, tuple(reply["prefill_s"]), tuple(reply["decode_s"]))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def __enter__(self) -> Self:
        """Return itself, loaded."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    @cached_property
    def _keeps_state(self) -> bool:
        """Whether the graph has convolutions over time or linear attention, whose state is not in the KV cache."""
        graph = self.folder / GRAPH_FILE
        return graph.is_file() and any(node.type == LINEAR_ATTENTION for node in read_binary_graph(graph).all_nodes)

    def _begin(self, together: int) -> None:
        """Get ready for a new sequence whose first ``together`` tokens come in one pass.

        The engine's ``reset()`` keeps the state of convolutions over time and of linear attention, and a pass of one
        token continues from it (measured on LFM2, 3.6.1: a second sequence, token by token, is 41 % off). Such a model
        is loaded again.
        """
        if self._used and together == 1 and self._keeps_state:
            self.restart()
        self._used = True

    def _logits(self, command: str, token_ids: TokenIds, **more: list[int]) -> Logits:
        ids = self.checked(token_ids)
        self._begin(1 if command == "stepwise" else len(ids))
        process = self._running()
        path = process.folder / "logits.f32"
        answer = process.request({"command": command, "ids": ids, "path": str(path), **more}, self.timeout_s)
        try:
            shape, expected = answer.get("shape"), [len(ids), self.vocabulary]
            if shape != expected:
                msg = f"the engine gave logits of shape {shape!r:.80} for {len(ids)} tokens of {self.vocabulary}; "
                msg += "the graph does not give every position's logits, export it again"
                raise ToolError(msg)
            size = path.stat().st_size
            if size != 4 * len(ids) * self.vocabulary:
                msg = f"the engine's logits of shape {shape} came as {size:,} bytes; is the temporary folder full?"
                raise ToolError(msg)
            return np.fromfile(path, np.float32).reshape(expected)
        finally:
            path.unlink(missing_ok=True)

    def _running(self) -> EngineProcess:
        if self._process is None:
            msg = f"the engine of {self.folder} was closed; call restart()"
            raise ToolError(msg)
        return self._process

    def _ask(self, **request: object) -> dict[str, Any]:
        return self._running().request(request, self.timeout_s)


def _config_of(folder: Path) -> Path:
    path = folder / CONFIG_FILE
    if not path.is_file():
        msg = f"{folder} holds no {CONFIG_FILE}; give a built MNN model folder"
        raise InputError(msg)
    return path
