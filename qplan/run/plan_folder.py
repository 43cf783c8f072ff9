"""The folder of one plan: the plan, what was built from it, what that did, and the report of it all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PLAN_FILE = "plan.json"
VERIFICATION_FILE = "verification.json"
TOKEN_LOSSES_FILE = "token-losses.json"  # noqa: S105 - of a text


@dataclass(frozen=True)
class PlanFolder:
    """Paths of a plan's files; `qplan.run.folder.RunFolder` has those of the run that it lies in."""

    folder: Path

    @property
    def plan(self) -> Path:
        """The plan itself, which people may edit."""
        return self.folder / PLAN_FILE

    @property
    def quant_config(self) -> Path:
        """The plan as llmexport's command line reads it."""
        return self.folder / "quant_config.json"

    @property
    def model(self) -> Path:
        """The built MNN model, a folder."""
        return self.folder / "model"

    @property
    def llmexport(self) -> Path:
        """Where llmexport's command line writes its model of the same plan, a folder."""
        return self.folder / "llmexport"

    @property
    def verification(self) -> Path:
        """What the engine measured."""
        return self.folder / VERIFICATION_FILE

    @property
    def token_losses(self) -> Path:
        """The built model's loss at every token."""
        return self.folder / TOKEN_LOSSES_FILE

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.folder / "report.html"

    @property
    def short_report(self) -> Path:
        """The Markdown for a pull request."""
        return self.folder / "report.md"

    @property
    def provenance(self) -> Path:
        """What is needed to make the report again, besides the other files."""
        return self.folder / "report.json"
