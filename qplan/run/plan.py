"""The plan: one format per tensor, with the promise it makes about bytes and loss."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qplan.artifact import body_of, decoding, read_json, write_json
from qplan.cost.file_bytes import FileBytes
from qplan.cost.footprint import Footprint
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.notes import Note, note
from qplan.run.decode import JsonText, decode
from qplan.run.kv_cache import PlannedCache
from qplan.settings import DynamicOption, Memory, Precision

KIND, SCHEMA = "qplan-plan", 3

_ENGINE = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}")

_ENGINE_RECORDED = 3
"""First schema with `Plan.engine`."""

_TUNED = frozenset(
    {
        "integers-tuned",
        "layers-tuned",
        "scales-tuned",
        "integers-and-scales-tuned",
        "layers-and-scales-tuned",
        "tuning-gains-nothing",
    }
)
"""Notes on what was fitted to the plan as a whole."""

_OF_ENGINE = re.compile(rf"-mnn-({_ENGINE.pattern})$")
"""End of a folder's name that ``emit --engine`` makes; plans of schemas before 3 record their engine nowhere else."""


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """One tensor's place in the plan."""

    name: str
    """Hugging Face name."""
    op_name: str
    """Op name in the MNN graph."""
    layer: int | None
    kind: str
    weights: int
    format: QuantFormat
    bytes: int
    """Bytes of its record in the weight file."""
    loss_nats: float
    """Loss of this format with everything else FP32."""

    @property
    def is_embedding(self) -> bool:
        """Whether this is an untied embedding, which is no op of the graph."""
        return not self.op_name


@dataclass(frozen=True, kw_only=True)
class SolverReport:
    """What the solver proved."""

    status: str
    """``optimal``, or why not."""
    objective_nats: float
    """Sum over the plan of what was minimized: single-tensor losses in nats, unless another metric was asked for."""
    bound_nats: float
    """No plan within the constraints has a smaller sum than this."""
    gap: float
    """(objective - bound) / objective; 0 is proved optimal."""
    choices: int
    """Binary variables of the problem."""
    seconds: float


@dataclass(frozen=True)
class LogitsRule:
    """The rule that keeps logits-related tensors at higher precision, and what it costs."""

    min_bits: int
    """Widths below this were not allowed for the head and a tied embedding."""
    at_least_mean: bool
    """Whether the head also had to be at or above the size-weighted mean width of the other tensors."""
    price_nats: float
    """Predicted loss with the rule minus without it, at the same budget; 0 if the rule did not bind."""
    head_format_without: str
    """What the head would be without the rule."""


@dataclass(frozen=True)
class UniformPoint:
    """A uniform format for comparison: what a careful user would export."""

    name: str
    """e.g. ``int4`` (head at 8 bits)."""
    total_bytes: int
    predicted_nats: float | None
    """Predicted loss, as for a plan; None where a format was not measured."""
    footprint: Footprint | None = None
    """RAM and relative times on the plan's target; None in plans of earlier versions, or if it has no such format."""


@dataclass(frozen=True)
class Rival:
    """A uniform export within the same limits as the plan: what anyone could make instead."""

    name: str
    """See `qplan.uniform.UniformExport`, e.g. ``int5-b32-hqq``."""
    total_bytes: int
    heldout_nats: float
    """Loss of its whole model in torch, on half of the held-out rows, under the plan's memory setting."""
    command: str
    """What makes it."""


@dataclass(frozen=True)
class Pin:
    """A format that the user gave to the tensors of a pattern."""

    pattern: str
    format: QuantFormat


@dataclass(frozen=True)
class LeastBits:
    """A least width that the user gave to the tensors of a pattern."""

    pattern: str
    bits: int


@dataclass(frozen=True)
class GivenRules:
    """What the user asked for besides budgets and the logits rule; see `qplan.planner.planning.Rules`."""

    pins: tuple[Pin, ...] = ()
    min_bits: tuple[LeastBits, ...] = ()
    groups: tuple[str, ...] = ()
    """Patterns whose tensors share a format."""
    fused: bool = False
    """Whether q, k, v and gate, up share a format."""
    metric: str = "kl"
    """What was summed and minimized, see `qplan.planner.metric.Metric`."""


@dataclass(frozen=True)
class PlannedLimit:
    """A limit besides file bytes, and what the plan is predicted to use."""

    name: str
    """What is limited, e.g. ``RAM``."""
    limit: float
    predicted: float
    unit: str
    """Of both: ``MB``, ``ms``, ``%``, ``nats``."""
    of: str = ""
    """The uniform export whose use the limit is, such as ``int4``; empty for a limit that the user gave."""


@dataclass(frozen=True)
class Tuning:
    """Integers and scales that were fitted to the plan as a whole, once it was chosen."""

    method: str
    """How: integers in order (``sequential``), scales end to end (``scales``), or one after the other
    (``sequential+scales``)."""
    ships: bool
    """Whether they lose less beyond doubt, and are built."""
    head: bool
    """Whether integers of the head were fitted in order."""
    tokens: int
    """Calibration tokens that this was decided by; they were not fitted to these."""
    before_nats: float
    """Loss of the whole model there with each tensor's integers fitted by itself."""
    after_nats: float
    """The same with those that were fitted to the plan."""
    steps: int = 0
    """Of the training of scales, at most; 0 where they were not trained."""
    dynamic_option: DynamicOption = 0
    """The one that they were trained under, which need not be the plan's own."""
    layers: bool = False
    """Whether the integers and scales of each layer were trained as well, once they were fitted."""

    @property
    def times(self) -> float:
        """How many times as much the model loses as it would without them, as it ships."""
        return self.after_nats / self.before_nats if self.ships and self.before_nats and self.after_nats else 1.0


@dataclass(frozen=True)
class Plan:
    """One format for every tensor, under a budget."""

    model: str
    model_sha256: str
    sensitivity_sha256: str
    memory: Memory
    """MNN ``memory`` setting that the losses were measured for."""
    budget: str
    """As the user wrote it."""
    budget_bytes: int
    """The budget in bytes of the files that ship."""
    tensors: tuple[PlannedTensor, ...]
    predicted_nats: float
    """Predicted loss of the whole plan: the sum of single losses, corrected by how sums compared with whole plans."""
    files: FileBytes
    solver: SolverReport
    logits: LogitsRule
    uniform: tuple[UniformPoint, ...]
    notes: tuple[Note, ...]
    """What a reader must know."""
    dynamic_option: DynamicOption = 0
    """MNN's ``dynamic_option`` that the model ships with: 2 for int8 activations with a scale per block."""
    given: GivenRules = GivenRules()
    limits: tuple[PlannedLimit, ...] = ()
    objective: str = "loss"
    """What was minimized: ``loss``, ``smallest`` (bytes) or ``fastest`` (decode time)."""
    target: str = "cpu-x86"
    """Where the plan is to run, see `qplan.cost.target`."""
    rivals: tuple[Rival, ...] = ()
    """Uniform exports within the plan's limits that lose least, the best first; empty in plans of earlier versions."""
    engine: str | None = None
    """Version of MNN that the plan is for, e.g. ``3.5.0``; None for the one that was installed."""
    precision: Precision = "low"
    """MNN's ``precision`` setting that the model ships with."""
    arithmetic: str | None = None
    """Whose arithmetic the losses are of, under the plan's `dynamic_option`; None for what was measured: x86's, under
    the analysis's own."""
    parity: str = "files"
    """What a budget such as ``int4`` promises, see `qplan.settings.Parity`; plans of earlier versions promise files."""
    footprint: Footprint | None = None
    """RAM and relative times on the target; None in plans of earlier versions."""
    kv: PlannedCache | None = None
    """The KV cache that it was planned with; None where no context was given."""
    tuning: Tuning | None = None
    """What fitting its integers as a whole came to; None where that was not tried, and in plans of earlier versions."""

    @property
    def formats(self) -> dict[str, QuantFormat]:
        """Format by Hugging Face name."""
        return {tensor.name: tensor.format for tensor in self.tensors}

    @property
    def mean_bits(self) -> float:
        """Size-weighted mean width, without scales."""
        return sum(t.format.bits * t.weights for t in self.tensors) / sum(t.weights for t in self.tensors)

    def noted(self, *notes: Note) -> Plan:
        """The plan with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def tuned(self, tuning: Tuning) -> Plan:
        """The plan with what fitting its integers as a whole came to; its prediction did not know of that."""
        figures = {
            "times": tuning.after_nats / tuning.before_nats if tuning.before_nats else 1.0,
            "before_nats": tuning.before_nats,
            "after_nats": tuning.after_nats,
            "tokens": tuning.tokens,
            "memory": self.memory,
        }
        if not tuning.ships:
            told = note("tuning-gains-nothing", **figures)
        elif tuning.method == "sequential":
            told = note("layers-tuned" if tuning.layers else "integers-tuned", **figures)
        elif tuning.method == "scales":
            told = note("scales-tuned", **figures)
        else:
            told = note("layers-and-scales-tuned" if tuning.layers else "integers-and-scales-tuned", **figures)
        return replace(self, tuning=tuning, predicted_nats=self.predicted_nats * tuning.times).noted(told)

    def untuned(self) -> Plan:
        """The plan without that."""
        if self.tuning is None:
            return self
        notes = tuple(known for known in self.notes if known.code not in _TUNED)
        predicted = self.predicted_nats / self.tuning.times
        return replace(self, tuning=None, predicted_nats=predicted, notes=notes)

    def write(self, path: Path) -> None:
        """Write ``plan.json`` atomically."""
        body = asdict(self)
        body["notes"] = [note.to_json() for note in self.notes]
        body["tensors"] = [asdict(t) | {"format": t.format.name} for t in self.tensors]
        body["given"]["pins"] = [{"pattern": pin.pattern, "format": pin.format.name} for pin in self.given.pins]
        inputs = {"model": self.model_sha256, "sensitivity": self.sensitivity_sha256}
        # people edit plans, so that no hash is kept
        write_json(path, KIND, SCHEMA, inputs, body, sealed=False)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read ``plan.json``.

        Raises:
            InputError: not a plan, or a field is missing, unknown or of another type; names the line.
            StaleArtifactError: written by a newer qplan.
        """
        document = read_json(path, KIND, SCHEMA)
        source = JsonText(str(path), path.read_text(encoding="utf-8"))
        plan = decode(cls, body_of(document), source)
        if document["schema"] < _ENGINE_RECORDED and (named := _OF_ENGINE.search(path.resolve().parent.name)):
            plan = replace(plan, engine=named[1])
        if plan.engine is not None and not _ENGINE.fullmatch(plan.engine):
            problem = f"{plan.engine!r} is not a version of MNN; write it as 3.5.0, or null for the installed one"
            raise source.error(problem, "engine")
        for index, tensor in enumerate(plan.tensors):
            if tensor.weights <= 0:
                problem = f"{tensor.weights} weights: must be positive"
                raise source.error(problem, "tensors", index, "weights")
        if not plan.tensors:
            msg = f"{path} holds no tensors; make it again with 'qplan emit'"
            raise InputError(msg)
        return plan


def versions_of(path: Path) -> dict[str, str]:
    """Versions of the packages that made a plan.

    Raises:
        InputError: no such file, or not a plan.
        StaleArtifactError: written by a newer qplan.
    """
    document = read_json(path, KIND, SCHEMA)
    with decoding(path, "make it again with 'qplan emit'"):
        found: dict[str, str] = document["versions"]
    return found


def tensor_names(path: Path) -> tuple[str, ...]:
    """Names of a plan's tensors, read without the rest of it: shell completion waits for them.

    Raises:
        InputError: no such file, or not a plan.
        StaleArtifactError: written by a newer qplan.
    """
    tensors = read_json(path, KIND, SCHEMA).get("tensors")
    if not isinstance(tensors, list) or not all(isinstance(t, dict) and "name" in t for t in tensors):
        msg = f"{path} holds no tensors; make it again with 'qplan emit'"
        raise InputError(msg)
    return tuple(str(tensor["name"]) for tensor in tensors)
