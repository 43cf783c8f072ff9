"""``qplan.Engine``: MNN's engine behind every check that qplan knows; what still goes wrong is a Python exception."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from qplan.errors import InputError, PreflightError, ToolError
from qplan.mnn.engine.session import Engine, Logits
from qplan.mnn.preflight import Preflight, check_folder
from qplan.mnn.runtime import RuntimeConfig

MOST_TOKENS = 32_768
"""Longest sequence for a model that does not say how long its context is: its attention mask takes 4 GiB."""

MOST_TEXT_BYTES = 1 << 20
"""Longest text."""

MOST_LOGITS_BYTES = 2 << 30
"""Largest array that `GuardedEngine.logits` returns."""


TokenIds = Sequence[int] | NDArray[np.integer[Any]]
"""Tokens of one sequence."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Timing:
    """Seconds of the last generation."""

    prompt_tokens: int
    prefill_s: float
    decode_s: tuple[float, ...]
    """Of each pass after the prefill."""

    @property
    def decode_tokens_per_s(self) -> float:
        """Mean speed after the prefill; 0 before there is any."""
        return len(self.decode_s) / sum(self.decode_s) if self.decode_s else 0.0


class GuardedEngine:
    """An MNN language model in a child process.

    The folder is checked before the engine sees it, and so is every request: token ids, lengths, settings. A crash, a
    hang or a refusal of the engine raises `ToolError` with the engine's last words; the next request starts it again.

    Example:
        >>> with qplan.Engine("model") as engine:
        ...     for text in engine.generate("Hello", 64):
        ...         print(text, end="")
    """

    def __init__(
        self,
        folder: str | Path,
        runtime: RuntimeConfig | None = None,
        *,
        context: int | None = None,
        timeout_s: float = 600,
        check: bool = True,
    ) -> None:
        """Check a folder and load it.

        Args:
            folder: of an MNN model, whoever made it.
            runtime: settings of the engine; None is memory low, 1 thread.
            context: longest sequence in tokens; None for what the folder says.
            timeout_s: seconds until a request counts as hung and the process is killed.
            check: False loads the model whatever `qplan check` says.

        Raises:
            InputError: no such folder, or arguments of the wrong kind.
            PreflightError: the model would crash, be refused or compute garbage.
            ToolError: the engine does not load it, crashes or hangs.
        """
        path = _folder(folder)
        _check_options(runtime, timeout_s)
        if context is not None:
            context = _whole("context", context, 1)
        self.preflight: Preflight = check_folder(path)
        if check and self.preflight.errors:
            raise PreflightError(_told(self.preflight))
        self._limit = min(context or MOST_TOKENS, self.preflight.context or MOST_TOKENS)
        self._timing: Timing | None = None
        self._engine: Engine | None = Engine(path, runtime, timeout_s=timeout_s)
        self._generation = 0
        self._healthy = True
        self._lock = threading.RLock()
        found = self.preflight.vocabulary
        if check and found is not None and self._engine.vocabulary != found:
            width = self._engine.vocabulary
            self.close()
            msg = f"{path}: the engine gives {width} logits, the graph's head has {found} rows; export the model again"
            raise PreflightError(msg)

    @property
    def folder(self) -> Path:
        """The model."""
        return self.preflight.folder

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return self._running().vocabulary

    @property
    def context(self) -> int:
        """Longest sequence in tokens that is let through."""
        return self._limit

    @property
    def version(self) -> str:
        """Version of MNN."""
        return self._running().version

    @property
    def timing(self) -> Timing | None:
        """Of the last generation; None before the first."""
        return self._timing

    def restart(self) -> None:
        """Start a new process and load the model again. After a crash or a hang the next request does it by itself.

        Raises:
            ToolError: the engine does not load it.
        """
        engine = self._open()
        self._generation += 1
        engine.restart()
        self._healthy = True

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a chat template.

        Raises:
            InputError: not a text, or one that no tokenizer can take.
            ToolError: the engine failed.
        """
        checked = _text(text)
        return self._ask(lambda engine: engine.encode(checked))

    def logits(self, token_ids: TokenIds) -> Logits:
        """Logits of every position, float32 ``[tokens, vocabulary]``.

        Raises:
            InputError: no tokens, too many, not whole numbers, or outside of the vocabulary.
            ToolError: the engine failed.
        """
        ids = self._checked(token_ids, 0)
        size = 4 * len(ids) * self.vocabulary
        if size > MOST_LOGITS_BYTES:
            msg = f"logits of {len(ids):,} tokens take {size:,} bytes, limit {MOST_LOGITS_BYTES:,}; use shorter pieces"
            raise InputError(msg)
        self._generation += 1
        return self._ask(lambda engine: engine.logits(ids))

    def generate(self, prompt: str | TokenIds, max_tokens: int = 256) -> Iterator[str]:
        """Continue a prompt greedily, piece by piece, until a stop token or ``max_tokens``.

        Another request in the meantime ends the iteration. See `timing` afterwards.

        Raises:
            InputError: no prompt, a prompt too long for the context, or a count below 1.
            ToolError: the engine failed.
        """
        most = _whole("max_tokens", max_tokens, 1)
        ids = self._checked(self.encode(prompt) if isinstance(prompt, str) else prompt, most)
        self._generation += 1
        return self._pieces(ids, most, self._generation)

    def close(self) -> None:
        """End the process."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> Self:
        """Return itself, loaded."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    def _pieces(self, ids: list[int], most: int, generation: int) -> Iterator[str]:
        begun = self._ask(lambda engine: engine.begin(ids), generation)
        step = begun
        decode: list[float] = []
        for count in range(1, most + 1):
            self._timing = Timing(len(ids), begun.seconds, tuple(decode))
            if step.token in self.preflight.stops:
                return
            if step.text:
                yield step.text
            if count < most:
                token = step.token
                step = self._ask(lambda engine, token=token: engine.step(token), generation)  # type: ignore[misc]
                decode.append(step.seconds)

    def _open(self) -> Engine:
        if self._engine is None:
            msg = f"the engine of {self.folder} was closed; make a new one"
            raise ToolError(msg)
        return self._engine

    def _running(self) -> Engine:
        """The engine, started again if its process is dead."""
        engine = self._open()
        if not self._healthy:
            self.restart()
        return engine

    def _ask(self, call: Callable[[Engine], Answer], generation: int | None = None) -> Answer:
        """Do one request; remember if it cost the process its life."""
        with self._lock:
            if generation is not None and generation != self._generation:
                msg = "another request ended this generation; begin a new one"
                raise InputError(msg)
            engine = self._running()
            try:
                return call(engine)
            finally:
                self._healthy = engine.alive

    def _checked(self, token_ids: object, more: int) -> list[int]:
        """Token ids as Python integers; whatever the engine would crash on or answer with garbage is refused."""
        if isinstance(token_ids, (str, bytes)) or not isinstance(token_ids, (Sequence, np.ndarray)):
            msg = f"token ids are a {type(token_ids).__name__}, expected a list of whole numbers"
            raise InputError(msg)
        count = _count(token_ids)
        if count == 0:
            msg = "no tokens: the engine crashes on an empty sequence"
            raise InputError(msg)
        if count + more > self._limit:
            msg = f"{count:,} tokens and {more:,} to come exceed the context of {self._limit:,}; use fewer"
            raise InputError(msg)
        vocabulary = self.vocabulary
        ids: list[Any] = token_ids.tolist() if isinstance(token_ids, np.ndarray) else list(token_ids)
        for place, token in enumerate(ids):
            if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
                msg = f"token {place} is {token!r:.80}, expected a whole number from 0 to {vocabulary - 1}"
                raise InputError(msg)
            if not 0 <= token < vocabulary:
                msg = f"token {place} is {int(token)}, outside of the vocabulary of {vocabulary}; "
                raise InputError(msg + "use this model's tokenizer")
        return [int(token) for token in ids]


def _count(token_ids: Sequence[Any] | NDArray[Any]) -> int:
    if isinstance(token_ids, np.ndarray) and token_ids.ndim != 1:
        msg = f"token ids are an array of shape {token_ids.shape}, expected one dimension"
        raise InputError(msg)
    try:
        return len(token_ids)
    except OverflowError:
        msg = "there are more tokens than any context holds"
        raise InputError(msg) from None


def _check_options(runtime: object, timeout_s: object) -> None:
    if runtime is not None and not isinstance(runtime, RuntimeConfig):
        msg = f"runtime is a {type(runtime).__name__}, expected qplan.mnn.runtime.RuntimeConfig"
        raise InputError(msg)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < 1e9:
        msg = f"timeout_s {timeout_s!r}: must be a number of seconds above 0"
        raise InputError(msg)


def _folder(folder: object) -> Path:
    if not isinstance(folder, (str, Path)) or "\0" in str(folder):
        msg = f"model folder {folder!r:.80}: expected a path"
        raise InputError(msg)
    return Path(folder)


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        msg = f"{name} {value!r:.80}: must be a whole number from {least}"
        raise InputError(msg)
    return int(value)


def _text(text: object) -> str:
    if not isinstance(text, str) or not text:
        msg = f"{text!r:.80} is no text; give at least one character"
        raise InputError(msg)
    if "\0" in text:
        msg = f"character {text.index(chr(0))} of the text is a NUL, which the engine takes for its end; remove it"
        raise InputError(msg)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        msg = f"character {error.start} of the text is half of a surrogate pair; give valid Unicode"
        raise InputError(msg) from None
    if size > MOST_TEXT_BYTES:
        msg = f"a text of {size:,} bytes, limit {MOST_TEXT_BYTES:,}; use shorter pieces"
        raise InputError(msg)
    return text


def _told(preflight: Preflight) -> str:
    first, more = preflight.errors[0], len(preflight.errors) - 1
    rest = f" (and {more} more: see qplan check)" if more else ""
    return (
        f"{preflight.folder} would not run right on engine {preflight.engine}: {first.code}: {first.where}: "
        f"{first.what}. On the engine: {first.effect}. Remedy: {first.remedy}{rest}"
    )
