"""Uniform models for comparison: built, measured once per run, and removed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from qplan.artifact import MAKE_AGAIN, decoding, is_there, read_json, write_json
from qplan.errors import DamagedArtifactError
from qplan.formats import QuantFormat
from qplan.run.damage import tell_damaged
from qplan.run.plan_folder import TOKEN_LOSSES_FILE
from qplan.run.token_losses import TokenLosses
from qplan.run.verification import BuiltModel, built_model

KIND, SCHEMA = "qplan-baseline", 1


def baseline_path(folder: Path, name: str) -> Path:
    """File of a uniform model's measurements, such as those of ``int8``, in a run's folder of baselines."""
    return folder / f"{name}.json"


def baseline_token_losses(folder: Path, name: str) -> Path:
    """File of a uniform model's losses at every token."""
    return folder / f"{name}-{TOKEN_LOSSES_FILE}"


def kept_token_losses(folder: Path) -> tuple[TokenLosses, ...]:
    """Losses at every token of all uniform models that a run measured, by name.

    Raises:
        InputError: losses and tokens of a file do not belong together.
        StaleArtifactError: written by a newer qplan.
    """
    return tuple(map(TokenLosses.read, sorted(folder.glob(f"*-{TOKEN_LOSSES_FILE}"))))


def measured_once(
    path: Path, inputs: Mapping[str, str], formats: Mapping[str, QuantFormat], measure: Callable[[], BuiltModel]
) -> BuiltModel:
    """Read a uniform model's measurements from ``path``, or make and write them if it has none of these inputs.

    Args:
        path: the artifact.
        inputs: what the measurements depend on: model, text, engine, settings.
        formats: of the uniform model, by tensor name.
        measure: builds and measures.
    """
    wanted = dict(inputs) | {"formats": ",".join(f"{name}={fmt}" for name, fmt in formats.items())}
    if is_there(path):
        try:
            if (kept := _kept(path, wanted)) is not None:
                return kept
        except DamagedArtifactError as error:
            tell_damaged(error)
    built = measure()
    write_json(path, KIND, SCHEMA, wanted, {"model": asdict(built)})
    return built


def is_measured(path: Path, inputs: Mapping[str, str]) -> bool:
    """Whether a file has measurements of these inputs, whatever the formats."""
    if not is_there(path):
        return False
    try:
        found = read_json(path, KIND, SCHEMA, remedy=MAKE_AGAIN)["inputs"]
    except DamagedArtifactError:
        return False  # `measured_once` tells it
    return all(found.get(key) == value for key, value in inputs.items())


def _kept(path: Path, wanted: Mapping[str, str]) -> BuiltModel | None:
    """The measurements in a file, None if they depend on something else.

    Raises:
        InputError: the file, or the losses at every token beside it, were damaged.
    """
    found = read_json(path, KIND, SCHEMA, remedy=MAKE_AGAIN)
    tokens = baseline_token_losses(path.parent, path.stem)
    if is_there(tokens):
        TokenLosses.read(tokens)
    with decoding(path, MAKE_AGAIN):
        return built_model(found["model"], path, MAKE_AGAIN) if found["inputs"] == wanted else None
