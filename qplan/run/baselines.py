"""Uniform models for comparison: built, measured once per run, and removed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from qplan.artifact import read_json, write_json
from qplan.formats import QuantFormat
from qplan.run.verification import BuiltModel, built_model

KIND, SCHEMA = "qplan-baseline", 1


def measured_once(
    path: Path, inputs: Mapping[str, str], formats: Mapping[str, QuantFormat], measure: Callable[[], BuiltModel]
) -> BuiltModel:
    """Read a uniform model's measurements from ``path``, or make and write them if they are of other inputs.

    Args:
        path: the artifact.
        inputs: what the measurements depend on: model, text, engine, settings.
        formats: of the uniform model, by tensor name.
        measure: builds and measures.
    """
    wanted = dict(inputs) | {"formats": ",".join(f"{name}={fmt}" for name, fmt in formats.items())}
    if path.is_file():
        found = read_json(path, KIND, SCHEMA)
        if found["inputs"] == wanted:
            return built_model(found["model"])
    built = measure()
    write_json(path, KIND, SCHEMA, wanted, {"model": asdict(built)})
    return built
