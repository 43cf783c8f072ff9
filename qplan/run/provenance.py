"""What a plan's report needs beyond the other artifacts: how to make it again, and where it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qplan.artifact import decoding, is_there, read_json, versions, write_json
from qplan.errors import InputError
from qplan.run.decode import decode_artifact
from qplan.run.plan import Plan, versions_of
from qplan.run.plan_folder import PlanFolder
from qplan.run.took import Took

KIND, SCHEMA = "qplan-report", 1

_REMEDY = "make it again with 'qplan emit'"


@dataclass(frozen=True)
class Provenance:
    """What the artifacts don't hold: how to make the report again."""

    commands: tuple[str, ...] = ()
    """Command lines that lead from the model to this report."""
    versions: Mapping[str, str] = field(default_factory=versions)
    """Versions of the packages that made it."""
    machine: str = ""
    """Where the speeds were measured, e.g. the processor's name; may be empty."""
    took: tuple[Took, ...] = ()
    """Time and memory of the commands; empty in files of earlier versions."""

    def write(self, folder: PlanFolder, plan: Plan) -> None:
        """Write ``report.json`` atomically; the file's header records the versions that are installed now.

        Args:
            folder: the plan's folder.
            plan: what the report is about.
        """
        inputs = {"model": plan.model_sha256, "sensitivity": plan.sensitivity_sha256}
        body = {
            "commands": list(self.commands),
            "machine": self.machine,
            "took": [took.to_json() for took in self.took],
        }
        write_json(folder.provenance, KIND, SCHEMA, inputs, body)

    @classmethod
    def read(cls, folder: PlanFolder) -> Provenance:
        """Read ``report.json``; where older versions wrote none, take the package versions from the plan.

        Raises:
            InputError: no plan, or another kind of file.
            StaleArtifactError: written by a newer qplan.
        """
        if not is_there(folder.provenance):
            return cls(versions=versions_of(folder.plan))
        stored = read_json(folder.provenance, KIND, SCHEMA, remedy=_REMEDY)
        with decoding(folder.provenance, _REMEDY):
            commands, machine = stored["commands"], stored["machine"]
            if not isinstance(commands, list) or not all(isinstance(text, str) for text in (machine, *commands)):
                msg = f"{folder.provenance}: commands must be a list of texts, and machine a text"
                raise InputError(msg)
        took = decode_artifact(_Costs, {"took": stored.get("took", [])}, folder.provenance, _REMEDY).took
        return cls(tuple(commands), stored["versions"], machine, took)


@dataclass(frozen=True)
class _Costs:
    """What a report's file holds about time and memory, to check the types."""

    took: tuple[Took, ...]
