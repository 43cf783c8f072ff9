"""The proof on ARM: the built plan on MNN's aarch64 engine under emulation, a process for each processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from qplan.card import ModelCard
from qplan.cost.arm import PATHS, proof_precisions, proof_tokens
from qplan.cost.target import find_target
from qplan.errors import MeasurementError, ToolError
from qplan.formats import Formats
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.host import THIS_PYTHON, EngineHost
from qplan.mnn.runtime import RuntimeConfig
from qplan.notes import Note, few, note, text_note
from qplan.rounding import EnginePath
from qplan.run.verification import Accuracy, ArmRun, Check
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.settings import Precision, Progress
from qplan.verify.reference import accuracy_of

MOST_TIMES_HERE = 4.0
"""Times the loss on this machine's engine that a processor may lose. A scale per block of the activations loses up to
2.4 times as much on ARM as on x86, what a kernel garbles is NaN or nats (``reports/arm``)."""

MOST_TIMES_PREDICTED, PREDICTED_FLOOR_NATS = 1.5, 2e-5
"""The same over what torch computes with the processor's arithmetic. Whole models were within a tenth of it on some
hundred tokens (``reports/targets``); a proof may run on fewer."""

HALF_FLOOR_NATS = 1e-3
"""Loss beyond that which arithmetic in fp16 may cost; 4e-5 to 6e-5 were measured."""

_Place = tuple[str, str]
"""Precision and path."""


@dataclass(frozen=True)
class ArmProof:
    """What was measured on all processors, and whether the plan is right there."""

    runs: tuple[ArmRun, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class _Found:
    """What one engine did."""

    accuracies: Mapping[_Place, Accuracy]
    problem: str = ""
    """Why there are no more of them."""


class _Sessions:
    """Engines of several threads, which any of them can end for all."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: list[EngineSession] = []
        self._closed = False

    def open(self, folder: Path, runtime: RuntimeConfig, context: int, host: EngineHost) -> EngineSession:
        """Start one.

        Raises:
            ToolError: it does not load the model, or all were ended.
        """
        session = EngineSession(folder, runtime, context=context, host=host)
        with self._lock:
            if not self._closed:
                self._open.append(session)
                return session
        session.close()
        msg = "the proof was ended"
        raise ToolError(msg)

    def close(self) -> None:
        """End all, also those that have yet to start."""
        with self._lock:
            self._closed = True
        for session in self._open:
            session.close()


@dataclass(frozen=True, kw_only=True)
class ArmTrial:
    """A built plan, and what it is held against."""

    folder: Path
    """The built model."""
    formats: Formats
    """By tensor name."""
    runtime: RuntimeConfig
    """MNN's settings that it ships with."""
    card: ModelCard
    reference: KeptLogits
    """FP32 on held-out tokens, of which the first are used."""
    predicted: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    """Loss in torch with a processor's arithmetic on the same tokens, by processor, precision and path."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """MNN's settings that it runs under, the one that it ships with first."""
        return proof_precisions(self.runtime.precision)

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens in one pass per row, and by themselves."""
        weights = sum(spec.weights for spec in self.card.tensors)
        return proof_tokens(weights, self.reference.rows.size, self.reference.rows.shape[1])

    def part(self, path: EnginePath) -> KeptLogits:
        """The tokens that go through on a path, and what FP32 says of them."""
        tokens, steps = self.tokens
        seq_len = self.reference.rows.shape[1]
        rows, length = (1, steps) if path == "decode" else (max(1, tokens // seq_len), min(tokens, seq_len))
        return KeptLogits(self.reference.rows[:rows, :length], self.reference.logits[:rows, :length])

    def run(
        self, host: EngineHost, precisions: Sequence[Precision], sessions: _Sessions, tell: Callable[[None], None]
    ) -> _Found:
        """Losses on an engine; what it does instead of computing, such as to crash, ends them.

        Args:
            host: runs the engine.
            precisions: MNN's settings.
            sessions: where others can end it.
            tell: called after each run, or instead of it.
        """
        found: dict[_Place, Accuracy] = {}
        left = len(precisions) * len(PATHS)
        try:
            with sessions.open(self.folder, self._at(precisions[0]), self.card.context, host) as engine:
                for precision in precisions:
                    if precision != engine.runtime.precision:
                        engine.load(self.folder, self._at(precision))
                    for path in PATHS:
                        found[precision, path] = self._compared(engine, path)
                        left -= 1
                        tell(None)
        except (ToolError, MeasurementError) as error:
            return _Found(found, str(error).partition("\n")[0])
        finally:
            for _ in range(left):
                tell(None)
        return _Found(found)

    def _at(self, precision: Precision) -> RuntimeConfig:
        return replace(self.runtime, precision=precision)

    def _compared(self, engine: EngineSession, path: EnginePath) -> Accuracy:
        return accuracy_of(self.part(path).compare(engine.logits_stepwise if path == "decode" else engine.logits))


def prove_on_arm(trial: ArmTrial, hosts: Mapping[str, EngineHost], *, jobs: int, progress: Progress) -> ArmProof:
    """Run a built plan on processors at each of its precisions, in prefill and in decode.

    Args:
        trial: the plan.
        hosts: what emulates each, by its name.
        jobs: processors to emulate at a time.
        progress: called after each run.

    Raises:
        ToolError: this machine's own engine failed.
    """
    each = len(trial.precisions) * len(PATHS)
    told: SimpleQueue[None] = SimpleQueue()
    sessions = _Sessions()
    here = trial.run(THIS_PYTHON, trial.precisions[:1], sessions, lambda _: None)
    if here.problem:
        raise ToolError(here.problem)
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            name: pool.submit(trial.run, host, trial.precisions, sessions, told.put) for name, host in hosts.items()
        }
        try:
            for done in range(1, each * len(hosts) + 1):
                told.get()
                progress(done, each * len(hosts))
        except BaseException:  # an interrupt: no minutes of waiting for what nobody wants any more
            pool.shutdown(wait=False, cancel_futures=True)
            sessions.close()
            raise
    runs: list[ArmRun] = []
    checks: list[Check] = []
    for name in hosts:
        found = futures[name].result()
        own = [_run(name, place, accuracy, here, trial) for place, accuracy in found.accuracies.items()]
        runs += own
        checks += [_legal(trial, name), _computes(name, own, found.problem)]
    return ArmProof(tuple(runs), tuple(checks))


def _run(name: str, place: _Place, accuracy: Accuracy, here: _Found, trial: ArmTrial) -> ArmRun:
    precision, path = place
    lost_here = here.accuracies[trial.precisions[0], path].kl_nats
    return ArmRun(name, precision, path, accuracy, lost_here, trial.predicted.get((name, precision, path)))


def _legal(trial: ArmTrial, name: str) -> Check:
    """Whether every tensor has a format that the target of this name computes right."""
    target, specs = find_target(name), {spec.name: spec for spec in trial.card.planned}
    wrong = [tensor for tensor, fmt in trial.formats.items() if not target.legal(specs[tensor], fmt)]
    formats = sorted({str(trial.formats[tensor]) for tensor in wrong})
    shown, others = few(wrong)
    found: Note = note("arm-illegal", formats=formats, tensors=list(shown), others=others)
    return Check(note("arm-formats", processor=name), not wrong, found if wrong else note("arm-legal"))


def _computes(name: str, runs: Sequence[ArmRun], problem: str) -> Check:
    """Whether the plan runs there, and loses about what it loses here."""
    promise = note("arm-losses", processor=name)
    if problem:
        return Check(promise, passed=False, found=text_note(problem))
    worst = max(runs, key=lambda run: run.accuracy.kl_nats - _limit(run))
    return Check(
        promise,
        worst.accuracy.kl_nats <= _limit(worst),
        note(
            "arm-lost",
            nats=worst.accuracy.kl_nats,
            here_nats=worst.here_nats,
            limit_nats=_limit(worst),
            precision=worst.precision,
            path=worst.path,
            tokens=worst.accuracy.tokens,
        ),
    )


def _limit(run: ArmRun) -> float:
    if run.predicted_nats is None:
        return MOST_TIMES_HERE * run.here_nats + HALF_FLOOR_NATS
    return MOST_TIMES_PREDICTED * run.predicted_nats + PREDICTED_FLOOR_NATS


def not_proved(target: str, *, added: bool) -> tuple[Note, ...]:
    """That a plan for ARM was proved on this machine's processor alone, and how it would be proved there.

    Args:
        target: what the plan is for; nothing is missing where that is no ARM processor.
        added: whether the engine for it is in the cache.
    """
    if not find_target(target).arithmetic.startswith("arm"):
        return ()
    return (note("arm-not-proved" if added else "arm-not-proved-without-engine", target=target),)
