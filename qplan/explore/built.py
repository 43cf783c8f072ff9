"""The model that was built from a plan, and the measurements that were kept."""

from __future__ import annotations

from pathlib import Path

from qplan.artifact import is_there
from qplan.errors import InputError
from qplan.explore.plan import PlanView
from qplan.run.baselines import kept_token_losses
from qplan.run.plan_folder import PlanFolder
from qplan.run.token_losses import TokenLosses


def built_folder(view: PlanView) -> Path:
    """The MNN model of a plan.

    Raises:
        InputError: it was not built; says how to build it.
    """
    model = None if view.path is None else PlanFolder(view.path.parent).model
    if model is None or not model.is_dir():
        how = (
            "write it and run 'qplan emit --plan FILE'" if view.path is None else "run 'qplan emit' without --no-build"
        )
        msg = f"plan {view.name} has no built model; {how}"
        raise InputError(msg)
    return model


def plan_tokens(view: PlanView) -> TokenLosses:
    """Losses of single tokens that `qplan emit` measured with a plan's model.

    Raises:
        InputError: there are none of this very plan: not built, changed since, or built by an older qplan.
    """
    path = PlanFolder(built_folder(view).parent).token_losses
    remedy = f"run 'qplan emit --budget {view.plan.budget}' again"
    if view.verification is None:
        msg = f"{path.parent} was not built from this plan: it was made or edited since; {remedy}"
        raise InputError(msg)
    if not is_there(path):
        msg = f"{path} does not exist: an older qplan built this plan; {remedy}"
        raise InputError(msg)
    found = TokenLosses.read(path)
    if found.text_sha256 != view.verification.text_sha256:
        msg = f"{path} comes from another text than {path.parent}'s verification; {remedy}"
        raise InputError(msg)
    return found


def uniform_tokens(view: PlanView, text_sha256: str) -> dict[str, TokenLosses]:
    """Losses of single tokens of MNN's uniform exports on the same text, by name; only those that were kept."""
    kept = kept_token_losses(view.home.baselines_for(view.plan.engine))
    return {losses.model: losses for losses in kept if losses.text_sha256 == text_sha256}
