"""Which tensors of a mixture should share a format: plans of one analysis under several rules, on held-out text.

Run with ``python -m reports.mixture.plans RUN``; prints Markdown. Losses are emulated, memory low, prefill.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from qplan.cost.file_bytes import estimate_fixed
from qplan.folding.analyzed import load_analyzed
from qplan.formats import INT4, INT8
from qplan.model.load import LoadedModel
from qplan.model.mixture import MixtureOfExperts
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats
from qplan.uniform import uniform_formats

BUDGETS = ("int8", "6bpw", "int4", "5bpw")
RULES = {
    "a format per layer and kind of the experts (the default)": Rules(),
    "every matrix of every expert its own": Rules(group_patterns=("{layer}.mlp.experts.{expert}.{kind}",)),
    "a format per expert": Rules(group_patterns=("{layer}.mlp.experts.{expert}.*",)),
    "a format per layer": Rules(group_patterns=("{layer}.mlp.experts.*",)),
    "default, routers in int8": Rules(pins={"*.mlp.gate": INT8}),
    "default, routers in int4": Rules(pins={"*.mlp.gate": INT4}),
}


def choices(loaded: LoadedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Which experts every token is sent to: bool ``[routers, rows, seq_len, experts]``."""
    found = []

    def note(module: MixtureOfExperts, _args: object, logits: torch.Tensor) -> None:
        best = logits.topk(module.chosen, -1).indices
        found.append(torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, value=True))

    blocks = [module for module in loaded.model.modules() if isinstance(module, MixtureOfExperts)]
    hooks = [b.gate.register_forward_hook(lambda _m, a, out, b=b: note(b, a, out)) for b in blocks]
    loaded.logits(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


def main(folder: Path) -> None:
    """Print the tables."""
    run = RunFolder(folder)
    table, calibration = SensitivityTable.read(run.sensitivity), CalibrationSet.read(run.calibration)
    loaded = load_analyzed(run, table.model, lambda _: None).loaded
    rounder = run_rounder(run, loaded, calibration, table.conditions.rounding)
    rows, fixed = torch.from_numpy(calibration.heldout[:8]), estimate_fixed(table.model)
    print(f"| KL on {rows.numel()} held-out tokens | {' | '.join(BUDGETS)} |\n|---|{'---|' * len(BUDGETS)}")
    losses: dict[str, list[float]] = {name: [] for name in RULES}
    for budget in BUDGETS:
        plans = {
            name: make_plan(table, Budget.parse(budget), fixed, rules=rules).formats for name, rules in RULES.items()
        }
        found = joint_losses(loaded, rows, plans, "low", rounder=rounder, engine_embedding=True)
        for name, stats in found.items():
            losses[name].append(stats.kl_nats)
    first = losses[next(iter(RULES))]
    for name, row in losses.items():
        cells = (f"{nats:.2e} ({nats / base:.2f})" for nats, base in zip(row, first, strict=True))
        print(f"| {name} | {' | '.join(cells)} |")
    reference = choices(loaded, rows)
    print("\n| model | tokens whose experts change, mean over routers | in any router |\n|---|---|---|")
    models = {f"uniform int{bits}": uniform_formats(loaded.card, bits) for bits in (8, 4)}
    models |= {f"plan, {budget}": make_plan(table, Budget.parse(budget), fixed).formats for budget in ("int8", "int4")}
    for name, formats in models.items():
        stored = StoredWeights(loaded, rounder if name.startswith("plan") else None)
        with apply_formats(loaded, formats, "low", stored=stored, engine_embedding=True):
            changed = (choices(loaded, rows) != reference).any(-1)
        print(f"| {name} | {float(changed.float().mean()):.1%} | {float(changed.any(0).float().mean()):.1%} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
