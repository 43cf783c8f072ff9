"""``qplan.Engine``: MNN's engine behind every check that qplan knows; what still goes wrong raises an exception."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from qplan.errors import InputError, PreflightError, ToolError
from qplan.mnn.arm.home import require_arm
from qplan.mnn.arm.processors import find_processor
from qplan.mnn.engine.requests import TokenIds, checked_count, checked_text, shown
from qplan.mnn.engine.session import EngineSession, Logits, Score
from qplan.mnn.host import THIS_PYTHON, EngineHost
from qplan.mnn.preflight import Preflight, check_folder
from qplan.mnn.runtime import RuntimeConfig

MOST_TOKENS = 32_768
"""Longest sequence for a model that does not say how long its context is: its attention mask takes 4 GiB."""

MOST_LOGITS_BYTES = 2 << 30
"""Largest array that `Engine.logits` returns, in bytes."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Timing:
    """Seconds of the last generation."""

    prompt_tokens: int
    prefill_s: float
    decode_s: tuple[float, ...]
    """Seconds of each pass after the prefill."""

    @property
    def decode_tokens_per_s(self) -> float:
        """Mean speed after the prefill; 0 before there is any."""
        return len(self.decode_s) / sum(self.decode_s) if self.decode_s else 0.0


class Engine:
    """An MNN language model in a child process.

    The folder is checked before the engine sees it, and so is every request: token ids, lengths, settings. A crash, a
    hang or a refusal of the engine raises `ToolError` with the engine's last words; the next request starts it again,
    as it does after an interrupt (Ctrl-C, Jupyter's stop button). The process ends with `close`, which any thread may
    call, when nothing refers to this any more, and with Python, however that ends. A forked process has no engine.

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
        processor: str | None = None,
    ) -> None:
        """Check a folder and load it.

        Args:
            folder: an MNN model folder, whoever made it.
            runtime: settings of the engine; None is memory low, 1 thread.
            context: longest sequence in tokens; None for what the folder says.
            timeout_s: seconds until a request counts as hung and the process is killed.
            check: False loads the model whatever `qplan check` says.
            processor: an ARM processor to emulate, such as ``arm-dot``, with what `qplan engines add arm` fetched:
                about 50 times slower, so ``timeout_s`` counts for more. None for this machine's own.

        Raises:
            InputError: no such folder, or arguments of the wrong kind.
            PreflightError: the model would crash, be refused or compute garbage.
            ToolError: the engine does not load it, crashes or hangs.
        """
        path = _folder(folder)
        _check_options(runtime, timeout_s)
        host = THIS_PYTHON if processor is None else _emulated(processor)
        if context is not None:
            context = checked_count("context", context)
        self.preflight: Preflight = checked_folder(path) if check else check_folder(path)
        self._limit = min(context or MOST_TOKENS, self.preflight.context or MOST_TOKENS)
        self._timing: Timing | None = None
        self._session: EngineSession | None = EngineSession(
            path, runtime, context=self._limit, timeout_s=timeout_s, host=host
        )
        self._generation = 0
        self._lock = threading.RLock()
        found = self.preflight.vocabulary
        if check and found is not None and self._session.vocabulary != found:
            width = self._session.vocabulary
            self.close()
            msg = f"{path}: the engine gives {width} logits, the graph's head has {found} rows; export the model again"
            raise PreflightError(msg)

    @property
    def folder(self) -> Path:
        """The model folder."""
        return self.preflight.folder

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return self._running().vocabulary

    @property
    def context(self) -> int:
        """Longest sequence that is accepted, in tokens."""
        return self._limit

    @property
    def version(self) -> str:
        """Version of MNN."""
        return self._running().version

    @property
    def timing(self) -> Timing | None:
        """Timing of the last generation; None before the first."""
        return self._timing

    def restart(self) -> None:
        """Start a new process and load the model again. After a crash or a hang the next request does so on its own.

        Raises:
            ToolError: the engine does not load it.
        """
        session = self._open()
        self._generation += 1
        session.restart()
        if self._session is not session:  # closed by another thread in the meantime
            session.close()
            self._open()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a chat template.

        Raises:
            InputError: not a text, or one that no tokenizer can take.
            ToolError: the engine failed.
        """
        checked = checked_text(text)
        return self._ask(lambda session: session.encode(checked))

    def chat(self, message: str) -> str:
        """A user's message in the model's chat template, up to where the answer begins: a prompt for `generate`.

        The same text where the model has no template.

        Raises:
            InputError: not a text, or one that no tokenizer can take.
            ToolError: the engine failed.
        """
        checked = checked_text(message)
        return self._ask(lambda session: session.chat(checked))

    def logits(self, token_ids: TokenIds) -> Logits:
        """Logits of every position, float32 ``[tokens, vocabulary]``.

        Raises:
            InputError: no tokens, too many, not whole numbers, or outside of the vocabulary.
            ToolError: the engine failed.
        """
        ids = self._running().checked(token_ids)
        size = 4 * len(ids) * self.vocabulary
        if size > MOST_LOGITS_BYTES:
            msg = f"logits of {len(ids):,} tokens take {size:,} bytes, limit {MOST_LOGITS_BYTES:,}; use shorter pieces"
            raise InputError(msg)
        self._generation += 1
        return self._ask(lambda session: session.logits(ids))

    def score(self, token_ids: TokenIds, wanted: Sequence[tuple[int, int]]) -> list[Score]:
        """How likely tokens are after positions of a sequence, with each whether it is the likeliest.

        The same as from `logits`, at a fraction of its memory: any length that the context has room for.

        Args:
            token_ids: the sequence.
            wanted: positions in it from 0, each with the token that may follow the tokens up to there.

        Raises:
            InputError: see `logits`; no position, or one outside of the sequence.
            ToolError: the engine failed, or its logits are not finite.
        """
        self._generation += 1
        return self._ask(lambda session: session.score(token_ids, wanted))

    def generate(self, prompt: str | TokenIds, max_tokens: int = 256) -> Iterator[str]:
        """Continue a prompt greedily, piece by piece, until a stop token or ``max_tokens``.

        Another request in the meantime ends the iteration. See `timing` afterwards.

        Raises:
            InputError: no prompt, a prompt too long for the context, or a count below 1.
            ToolError: the engine failed.
        """
        most = checked_count("max_tokens", max_tokens)
        ids = self._running().checked(self.encode(prompt) if isinstance(prompt, str) else prompt, most)
        self._generation += 1
        return self._pieces(ids, most, self._generation)

    def close(self) -> None:
        """End the process; a request that another thread waits for fails."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Self:
        """Return itself, loaded."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    def _pieces(self, ids: list[int], most: int, generation: int) -> Iterator[str]:
        begun = self._ask(lambda session: session.begin(ids), generation)
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
                step = self._ask(lambda session, token=token: session.step(token), generation)  # type: ignore[misc]
                decode.append(step.seconds)

    def _open(self) -> EngineSession:
        session = self._session
        if session is None:
            msg = f"the engine of {self.folder} was closed; make a new one"
            raise ToolError(msg)
        if session.foreign:
            msg = f"the engine of {self.folder} belongs to the process that this one was forked from; make a new one"
            raise ToolError(msg)
        return session

    def _running(self) -> EngineSession:
        """The session, started again if its process is dead."""
        session = self._open()
        if not session.alive:
            self.restart()
        return session

    def _ask(self, call: Callable[[EngineSession], Answer], generation: int | None = None) -> Answer:
        """Make one request; one of a generation only if no other request or restart came in between."""
        self._open()  # before the lock: a forked process may find it locked for ever
        with self._lock:
            session = self._running()
            if generation is not None and generation != self._generation:
                msg = "another request or a restart ended this generation; begin a new one"
                raise InputError(msg)
            return call(session)


def checked_folder(folder: Path) -> Preflight:
    """What `qplan check` finds in a folder that the engine can run.

    Raises:
        InputError: no such folder.
        PreflightError: the model would crash, be refused or compute garbage.
    """
    found = check_folder(folder)
    if found.errors:
        raise PreflightError(_told(found))
    return found


def _check_options(runtime: object, timeout_s: object) -> None:
    if runtime is not None and not isinstance(runtime, RuntimeConfig):
        msg = f"runtime is a {type(runtime).__name__}, expected qplan.mnn.runtime.RuntimeConfig"
        raise InputError(msg)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < 1e9:
        msg = f"timeout_s {shown(timeout_s)}: must be a number of seconds above 0"
        raise InputError(msg)


def _emulated(processor: str) -> EngineHost:
    found = find_processor(processor)
    return require_arm((found.name,), f"processor {processor!r}").host(found)


def _folder(folder: object) -> Path:
    if not isinstance(folder, (str, Path)) or "\0" in str(folder):
        msg = f"model folder {folder!r:.80}: expected a path"
        raise InputError(msg)
    return Path(folder)


def _told(preflight: Preflight) -> str:
    first, more = preflight.errors[0], len(preflight.errors) - 1
    rest = f" (and {more} more: see qplan check)" if more else ""
    return (
        f"{preflight.folder} would not run right on engine {preflight.engine}: {first.code}: {first.where}: "
        f"{first.what}. On the engine: {first.effect}. Remedy: {first.remedy}{rest}"
    )
