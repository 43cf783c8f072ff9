"""What was measured on the real engine, as an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qplan.artifact import body_of, decoding, read_json, write_json
from qplan.cost.file_bytes import FileBytes
from qplan.cost.kv_cache import KvMode
from qplan.notes import Note
from qplan.run.decode import decode_artifact
from qplan.run.kv_cache import KvLoss
from qplan.run.plan import Plan
from qplan.run.samples import Samples
from qplan.run.speeds import Phase, Round, Spread, ratio_of_times

KIND, SCHEMA = "qplan-verification", 4

REMEDY = "make it again with 'qplan emit'"


@dataclass(frozen=True)
class Accuracy:
    """A model's next-token distributions against the Hugging Face model in FP32, on held-out tokens."""

    kl_nats: float
    """Mean KL(FP32 || model) per token."""
    kl_p99_nats: float
    """99th percentile over tokens."""
    top1: float
    """Fraction of tokens with the same most likely next token."""
    perplexity: float
    """exp of the mean negative log-likelihood of the text."""
    tokens: int


@dataclass(frozen=True)
class EngineRun:
    """One built model under one setting of the engine."""

    memory: str
    """``low`` or ``normal``."""
    path: str
    """``prefill`` (one pass per sequence) or ``decode`` (token by token)."""
    accuracy: Accuracy
    dynamic_option: int = 0
    """MNN's ``dynamic_option``; changes nothing under memory normal."""


@dataclass(frozen=True)
class Speed:
    """Speed and memory of one built model, memory low unless said otherwise; medians of rounds, or of several runs."""

    memory: str
    threads: int
    prompt_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    ram_bytes: int
    """Growth of the engine process's resident memory by loading the model."""
    dynamic_option: int = 0
    rounds: tuple[Round, ...] = ()
    """Times in each round, in which all models of a session took turns; empty for a model that was timed alone."""
    session: str = ""
    """Names the session; empty for a model that was timed alone."""

    def against(self, other: Speed, phase: Phase) -> Spread | None:
        """How much longer this model takes than another; None if they did not take turns."""
        if not self.session or self.session != other.session:
            return None
        return ratio_of_times(self.rounds, other.rounds, phase)


@dataclass(frozen=True)
class BuiltModel:
    """A built MNN model and what was measured of it."""

    name: str
    """``plan``, or of a uniform model: ``fp16``, ``int8``, ``int4``, or another `qplan.uniform.UniformExport`."""
    files: FileBytes
    runs: tuple[EngineRun, ...]
    speed: Speed | None
    emulated_nats: dict[str, float]
    """By memory setting: the loss that torch computes for the same stored weights (prefill)."""
    dynamic_option: int = 0
    """MNN's ``dynamic_option`` that the model ships with; `speed` and `emulated_nats` are those with it."""
    other_speed: Speed | None = None
    """Speed with the other ``dynamic_option``, where that was measured for comparison."""
    emulated_stderr_nats: dict[str, float] = field(default_factory=dict)
    """By memory setting: standard error of the mean difference between torch's loss and the engine's, from the scatter
    over stretches of text; empty in artifacts of earlier versions."""

    def accuracy(self, memory: str, path: str = "prefill", dynamic_option: int | None = None) -> Accuracy | None:
        """Accuracy under a setting, with the model's own ``dynamic_option`` by default; None if it was not run."""
        option = self.dynamic_option if dynamic_option is None else dynamic_option
        found = (r.accuracy for r in self.runs if (r.memory, r.path, r.dynamic_option) == (memory, path, option))
        return next(found, None)

    @property
    def own_runs(self) -> tuple[EngineRun, ...]:
        """The runs with the ``dynamic_option`` that the model ships with."""
        return tuple(run for run in self.runs if run.dynamic_option == self.dynamic_option)


@dataclass(frozen=True, kw_only=True)
class CacheProof:
    """A built model with its KV cache on the engine, on one long sequence."""

    mode: KvMode
    loss: KvLoss
    """KL from the model in FP32."""
    float_loss: KvLoss
    """The same with a cache of floats."""
    tokens: int
    """Tokens of the prompt that the cache made room for when its bytes were read."""
    predicted_bytes: int
    """Bytes of its keys and values for so many."""
    measured_bytes: int | None
    """The same as the engine allocated them; None where it is not x86's, whose layout is predicted here."""


@dataclass(frozen=True)
class ArmRun:
    """The built plan on MNN's aarch64 engine under emulation, on the first of the held-out tokens, memory low."""

    processor: str
    """A name of `qplan.mnn.arm.processors`."""
    precision: str
    """MNN's setting: the one that the model ships with, or ``high``, which computes in fp32."""
    path: str
    """``prefill`` or ``decode``."""
    accuracy: Accuracy
    here_nats: float
    """Loss on this machine's engine on the same tokens."""
    predicted_nats: float | None = None
    """Loss that torch computes with the processor's arithmetic on the same tokens; None where that was not done."""


@dataclass(frozen=True)
class Check:
    """One promise and whether the engine kept it."""

    promise: Note
    passed: bool
    found: Note
    """The measured value and the limit."""

    @property
    def name(self) -> str:
        """The promise in English."""
        return str(self.promise)

    @property
    def detail(self) -> str:
        """What was found, in English."""
        return str(self.found)

    def to_json(self) -> dict[str, Any]:
        """A JSON object, as the artifact holds it."""
        return {"promise": self.promise.to_json(), "passed": self.passed, "found": self.found.to_json()}


_CHECK_KEYS = (("promise", "name"), ("found", "detail"))
"""Keys of a check, and what they were before schema 3."""


@dataclass(frozen=True)
class Verification:
    """Everything that was measured for one plan."""

    model_sha256: str
    plan_sha256: str
    text: Note
    """Where the held-out tokens come from."""
    text_sha256: str
    reference_perplexity: float
    """Perplexity of the Hugging Face model in FP32 on the same tokens."""
    models: tuple[BuiltModel, ...]
    checks: tuple[Check, ...]
    arm: tuple[ArmRun, ...] = ()
    """What was proved on emulated ARM processors; empty without ``--prove``."""
    notes: tuple[Note, ...] = ()
    """What was not proved, and should have been."""
    kv: CacheProof | None = None
    """The KV cache; None where no context was given."""
    samples: Samples | None = None
    """Texts of the models side by side; None before schema 4, and where a model was too large to be run for them."""

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> frozenset[str]:
        """Codes of the promises that were not kept."""
        return frozenset(check.promise.code for check in self.checks if not check.passed)

    def model(self, name: str) -> BuiltModel | None:
        """A built model by name, None if it was not built."""
        return next((m for m in self.models if m.name == name), None)

    def write(self, path: Path) -> None:
        """Write ``verification.json`` atomically."""
        inputs = {"model": self.model_sha256, "plan": self.plan_sha256, "text": self.text_sha256}
        body = asdict(self) | {
            "text": self.text.to_json(),
            "checks": [check.to_json() for check in self.checks],
            "notes": [known.to_json() for known in self.notes],
        }
        write_json(path, KIND, SCHEMA, inputs, body)

    @classmethod
    def read(cls, path: Path) -> Verification:
        """Read ``verification.json``.

        Raises:
            InputError: not a verification, or a field is missing, unknown or of another type; names the line.
            StaleArtifactError: written by a newer qplan.
        """
        body = body_of(read_json(path, KIND, SCHEMA, remedy=REMEDY))
        with decoding(path, REMEDY):
            for check in body["checks"]:
                for new, old in _CHECK_KEYS:
                    if old in check:
                        check[new] = check.pop(old)
        return decode_artifact(cls, body, path, REMEDY)


def best_built(plan: Plan, models: Mapping[str, BuiltModel]) -> BuiltModel | None:
    """The uniform model that loses least of those within the plan's limits; None if none of them was built."""
    found = {}
    for rival in plan.rivals:
        accuracy = models[rival.name].accuracy(plan.memory) if rival.name in models else None
        if accuracy is not None:
            found[rival.name] = accuracy.kl_nats
    return models[min(found, key=lambda name: found[name])] if found else None


def built_model(value: object, path: Path, remedy: str) -> BuiltModel:
    """Read a `BuiltModel` from the key ``model`` of an artifact.

    Raises:
        DamagedArtifactError: a field is missing or of another type.
    """
    return decode_artifact(BuiltModel, value, path, remedy, "model")
