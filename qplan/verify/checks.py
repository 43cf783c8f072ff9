"""The promises of a plan, held against what was measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from qplan.card import ModelCard
from qplan.formats import QuantFormat
from qplan.mnn.build.embedding_file import embedding_format
from qplan.mnn.engine.probe import run_probe
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.engine.venv import EngineVenv
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.mnn.graph.binary import read_linears
from qplan.mnn.graph.linear import Linear
from qplan.mnn.preflight import check_folder
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.notes import Note, note, text_note
from qplan.rounding.rounder import Rounder
from qplan.run.plan import Plan, PlannedTensor
from qplan.run.verification import BuiltModel, Check
from qplan.sensitivity.kept_logits import Logits
from qplan.settings import NOTHING_NATS
from qplan.tensors import Role
from qplan.verify.engine_memory import first_tensors
from qplan.verify.reference import float_scatter, relative_error, stored_logits

EXACT_REL = 1e-5
"""Largest relative error of the engine's logits against torch with the same stored weights, memory normal."""

LAYERS_OF_EXACT_REL = 24
"""Layers up to which `EXACT_REL` holds as it is; float32 rounding grows with depth."""

SCATTERS_OF_EXACT_REL = 20.0
"""Times that the engine's logits may differ as much as those of torch do when floats move by half a step. 9 were
measured on a Llama of width 100 with 5 heads of 20, whose scatter is 1.2e-6; exports that are wrong differ by 1e-3."""

EMULATION_TOLERANCE = 0.05
"""Largest relative difference of the loss in torch and on the engine, beyond what scatter explains."""

EMULATION_STDERRS = 4.0
"""Standard errors of that difference that scatter may explain. Where activations lose much, codes at rounding edges
cascade: SmolLM2-135M as uniform INT8 was 8 % apart on 512 tokens, and nothing was wrong."""

ROUTED_TOLERANCE = 0.25
"""The same for a mixture of experts under memory low: torch and the engine may round a borderline activation
differently, and send the token to different experts. 0.4 to 6 % were measured on 2,048 tokens, ``reports/mixture/``."""


def exact_logits(
    name: str,
    engine: EngineSession,
    formats: Mapping[str, QuantFormat],
    rounder: Rounder,
    token_ids: list[int],
    *,
    limit: float | None = None,
    layers: int | None = None,
) -> Check:
    """Whether the engine, memory normal, computes what torch computes with the same stored weights.

    It does not if the exporter translates the architecture wrongly, or the files hold weights other than those planned.

    Args:
        name: ``plan``, or the uniform model's.
        engine: with the built model, memory normal.
        formats: what it was built with.
        rounder: chose its integers.
        token_ids: one sequence.
        limit: largest relative error; None for `exact_limit`.
        layers: how many of the first layers engine and torch compute, if not all.
    """
    first = [spec.name for spec in first_tensors(rounder.loaded.card, layers)]
    formats = {tensor: formats[tensor] for tensor in first if tensor in formats}
    error = relative_error(engine.logits(token_ids), stored_logits(rounder, formats, token_ids))
    limit = limit or exact_limit(rounder.loaded, token_ids, error)
    return Check(
        _promise_of_logits(name, layers),
        error <= limit,
        note("relative-error-of-tokens", error=error, limit=limit, memory="normal", tokens=len(token_ids)),
    )


def _promise_of_logits(name: str, layers: int | None) -> Note:
    if layers is not None:
        return note("first-logits", model=name, layers=layers)
    return note("plan-logits") if name == "plan" else note("uniform-logits", uniform=name)


def exact_limit(loaded: LoadedModel, token_ids: list[int], error: float) -> float:
    """Largest relative error that float rounding explains on a short sequence.

    Args:
        loaded: the model.
        token_ids: the sequence.
        error: what was found; only beyond `EXACT_REL` is it measured how much this model's logits scatter.
    """
    limit = EXACT_REL * max(1.0, len(loaded.layers) / LAYERS_OF_EXACT_REL)
    if error <= limit:
        return limit
    return max(limit, SCATTERS_OF_EXACT_REL * float_scatter(loaded, token_ids))


def read_back(folder: Path, plan: Plan) -> Check:
    """Whether the built graph holds every op of the plan in its format and no other, and the file of its embedding."""
    ops = {op.name: op for op in read_linears(folder)}
    wrong = [t.op_name or t.name for t in plan.tensors if not _holds(folder, ops, t)]
    planned = {t.op_name for t in plan.tensors if not t.is_embedding}
    extra = sorted(set(ops) - planned)
    right, count = len(planned) - sum(name in planned for name in wrong), len(planned)
    if wrong or extra:
        found = note("ops-wrong", right=right, count=count, wrong=wrong[:3], unknown=extra[:3])
    else:
        found = note("ops-right", right=right, count=count)
    return Check(note("read-back"), not wrong and not extra, found)


def _holds(folder: Path, ops: Mapping[str, Linear], tensor: PlannedTensor) -> bool:
    """Whether a built folder holds a tensor in its format."""
    if tensor.is_embedding:
        return embedding_format(folder) == tensor.format
    return tensor.op_name in ops and ops[tensor.op_name].holds(tensor.format)


def promised_bytes(plan: Plan, built: BuiltModel) -> tuple[Check, Check]:
    """Whether the files fit the budget and have the bytes that were predicted."""
    actual, said = built.files, plan.files
    fits = Check(
        note("fits-budget"),
        actual.total <= plan.budget_bytes,
        note("bytes-of-budget", total_bytes=actual.total, budget_bytes=plan.budget_bytes, budget=plan.budget),
    )
    same = (actual.weight, actual.embedding) == (said.weight, said.embedding)
    sums = {"actual_bytes": actual.weight + actual.embedding, "predicted_bytes": said.weight + said.embedding}
    predicted = Check(note("predicted-bytes"), same, note("bytes-of-predicted", **sums))
    return fits, predicted


def emulation(built: BuiltModel, card: ModelCard) -> tuple[Check, ...]:
    """Whether torch predicts the engine's loss of a built model, under each memory setting.

    The limit follows the scatter that was measured: `EMULATION_STDERRS` standard errors on top of the tolerance.
    """
    routed = any(spec.role is Role.ROUTER for spec in card.tensors)
    checks = []
    for memory, emulated in built.emulated_nats.items():
        run = built.accuracy(memory)
        if run is None:
            continue
        limit = ROUTED_TOLERANCE if routed and memory == "low" else EMULATION_TOLERANCE
        if run.kl_nats:
            limit += EMULATION_STDERRS * built.emulated_stderr_nats.get(memory, 0.0) / run.kl_nats
        difference = abs(emulated / run.kl_nats - 1) if run.kl_nats else float(emulated > NOTHING_NATS)
        checks.append(
            Check(
                note("plan-emulation", memory=memory)
                if built.name == "plan"
                else note("emulation", uniform=built.name, memory=memory),
                difference <= limit or max(emulated, run.kl_nats) < NOTHING_NATS,
                note(
                    "losses-apart",
                    torch_nats=emulated,
                    engine_nats=run.kl_nats,
                    difference=difference,
                    limit=limit,
                ),
            )
        )
    return tuple(checks)


WORSE_STDERRS = 2.0
"""Standard errors by which a plan must lose more than a uniform model on the same tokens to be worse beyond doubt."""


def not_worse(
    built: BuiltModel, uniform: BuiltModel, memories: Collection[str], stderrs: Mapping[str, float] | None = None
) -> tuple[Check, ...]:
    """Whether the plan loses no more than a uniform model of at least its bytes, under some memory settings.

    Args:
        built: the plan.
        uniform: the uniform model.
        memories: the settings.
        stderrs: by setting, the standard error of their difference, token by token; none where it is not known.
    """
    checks = []
    for run in built.own_runs:
        other = uniform.accuracy(run.memory, run.path)
        if other is None or run.path != "prefill" or run.memory not in memories:
            continue
        more, stderr = run.accuracy.kl_nats - max(other.kl_nats, NOTHING_NATS), (stderrs or {}).get(run.memory, 0.0)
        told = {
            "plan_nats": run.accuracy.kl_nats,
            "uniform_nats": other.kl_nats,
            "plan_bytes": built.files.total,
            "uniform_bytes": uniform.files.total,
        }
        alike = 0 < more <= WORSE_STDERRS * stderr
        found = note("plan-like-uniform", **told, stderr=stderr) if alike else note("plan-against-uniform", **told)
        checks.append(Check(note("not-worse", uniform=uniform.name, memory=run.memory), more <= 0 or alike, found))
    return tuple(checks)


RIGHT_REL = 1e-3
"""Largest relative error of an engine's logits against torch with the same stored weights, memory normal."""


def folder_check(model: Path, engine: EngineVersion) -> Check:
    """Whether `qplan check` accepts a built folder, before an engine gets it."""
    findings = [f"{finding.code}: {finding.where}: {finding.what}" for finding in check_folder(model, engine).errors]
    told = note("findings", findings=findings) if findings else note("nothing-found")
    return Check(note("preflight", engine=str(engine)), not findings, told)


def engine_checks(model: Path, target: EngineTarget, token_ids: list[int], expected: Logits) -> tuple[Check, ...]:
    """Whether the built model is right for an engine other than the installed one, if that very engine is here.

    Args:
        model: the built folder.
        target: the engine.
        token_ids: one sequence.
        expected: logits ``[tokens, vocabulary]`` in torch with the same stored weights.
    """
    engine = str(target.engine)
    checks = []
    home = EngineVenv.of(target.engine)
    if home.python.is_file():
        ran = run_probe(model, token_ids, RuntimeConfig("normal"), host=home.host)
        outcome, error = ran.judged(expected, RIGHT_REL)
        if error is not None:
            told = note("relative-error", error=error, limit=RIGHT_REL)
        else:
            told = text_note(ran.detail) if ran.detail else note("engine-outcome", outcome=outcome)
        checks.append(Check(note("other-engine", engine=engine), outcome == "ok", told))
    return tuple(checks)
