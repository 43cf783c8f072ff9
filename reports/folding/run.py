"""Compares folding methods: emulated losses of all, and losses on the engine of what qplan does.

Run from the repository's root with

    python -m reports.folding.run                                           # the embedded model
    python -m reports.folding.run --model FOLDER --calib FILE --text FILE   # another one
    python -m reports.folding.residual --model FOLDER --text FILE           # then, if its head is tied

Adds the model to ``results.json`` and writes ``README.md`` beside it. Scales and rounding are fitted to windows of
``--calib``; all losses are those on ``--text``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import qplan.demo
from qplan.calibration import load_text, tokenize
from qplan.folding.decide import check_equal
from qplan.folding.evidence import Evidence, gather_evidence
from qplan.folding.fold import fold, fold_sites, save_folded
from qplan.model.load import LoadedModel, load_model
from qplan.rounding.rounder import Rounder
from qplan.rounding.run_rounder import run_rounder
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.sensitivity.joint import joint_losses
from qplan.uniform import uniform_formats
from reports.folding.engine import on_engine
from reports.folding.methods import MEMORIES, awq, fitted, root, smoothquant, smoothquant_grid
from reports.folding.page import found_before, keep
from reports.folding.rotation import Rotation, rotate_values, rotation_of

BITS = (8, 4)
ROTATIONS: tuple[Rotation, ...] = ("hadamard", "random", "pca")
WITHOUT = "qplan's fit, without the tied head"
SHIPPED = "qplan's fit"


def variants(loaded: LoadedModel, evidence: Sequence[Evidence]) -> dict[str, LoadedModel]:
    """Models that compute the same function, by the method that chose their weights."""
    plans = [uniform_formats(loaded.card, bits) for bits in BITS]
    scales = {
        "SmoothQuant, 0.5": smoothquant(evidence, loaded, plans, 0.5),
        "SmoothQuant, strength per site": smoothquant_grid(evidence, loaded, plans),
        "AWQ": awq(evidence, loaded, plans),
        "root of the root mean square": root(evidence),
        SHIPPED: fitted(evidence, loaded, plans, print),
    }
    found = {"none": loaded} | {name: fold(loaded, chosen) for name, chosen in scales.items()}
    if loaded.card.tensor(loaded.architecture.head).tied:
        inner = {name: scale for name, scale in scales[SHIPPED].items() if name != loaded.architecture.head}
        found[WITHOUT] = fold(loaded, inner)
    values = [seen for seen in evidence if seen.site.kind == "value"]
    for kind in ROTATIONS:
        turned = {seen.site.name: rotation_of(seen, kind) for seen in values}
        found[f"values rotated, {kind}"] = rotate_values(loaded, turned)
    return found


def emulated(rounder: Rounder, tokens: torch.Tensor) -> dict[str, dict[str, float]]:
    """Joint losses in nats per token of uniform models, by memory and width."""
    plans = {f"int{bits}": uniform_formats(rounder.loaded.card, bits) for bits in BITS}
    return {
        memory: {
            name: stats.kl_nats
            for name, stats in joint_losses(rounder.loaded, tokens, plans, memory, rounder=rounder).items()
        }
        for memory in MEMORIES
    }


def kept(folded: LoadedModel, folder: Path) -> LoadedModel:
    """The same model, saved to a folder of its own and loaded from it."""
    save_folded(folded, folder)
    return load_model(str(folder))


def calibrations(loaded: LoadedModel, options: argparse.Namespace) -> tuple[CalibrationSet, torch.Tensor]:
    """The tokens that scales are fitted to, and those that they are judged on."""
    card = loaded.card
    limits = {"seq_len": options.seq_len, "context": card.context, "vocabulary": card.vocabulary, "seed": 0}
    fit = tokenize(
        load_text(options.calib, loaded.tokenizer),
        loaded.tokenizer,
        samples=32,
        fit_tokens=options.fit_tokens,
        **limits,
    )
    text = load_text(options.text, loaded.tokenizer)
    judge = tokenize(text, loaded.tokenizer, samples=options.tokens // options.seq_len, **limits)
    return fit, torch.from_numpy(judge.tokens)


def main() -> None:
    """Run for one model."""
    demo = Path(qplan.demo.__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(demo / "stdlib-3m"))
    parser.add_argument("--calib", default="python-stdlib")
    parser.add_argument("--text", default=str(demo / "heldout.txt"))
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=2048, help="most tokens that methods are judged on")
    parser.add_argument("--fit-tokens", type=int, default=8192)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(options.model)
    calibration, tokens = calibrations(loaded, options)
    start = time.process_time()
    fit = torch.from_numpy(calibration.fit)
    evidence = list(gather_evidence(loaded, fit, fold_sites(loaded)))
    gathered = time.process_time() - start
    models = variants(loaded, evidence)
    methods: dict[str, Any] = {}
    for name, model in models.items():
        error = check_equal(loaded, model, tokens[:2])
        methods[name] = {"relative_error": error, "rtn": emulated(Rounder(model), tokens)}
        print(name, methods[name], flush=True)
    with tempfile.TemporaryDirectory(prefix="qplan-folding-") as scratch:
        work = Path(scratch)
        rounders: dict[str, Rounder] = {}
        for label, name in (("none", "none"), ("fit", SHIPPED), ("inner", WITHOUT)):
            if name in models:
                model = loaded if name == "none" else kept(models[name], work / label / "folded")
                rounder = run_rounder(RunFolder(work / label), model, calibration, "auto")
                methods[name]["auto"] = emulated(rounder, tokens)
                print(name, methods[name]["auto"], flush=True)
                rounders |= {f"{name}, rtn": Rounder(model), f"{name}, auto": rounder}
        labels = {f"{index}": label for index, label in enumerate(rounders)}
        built = on_engine(
            loaded,
            {index: rounders[label] for index, label in labels.items()},
            uniform_formats(loaded.card, 8),
            tokens.numpy(),
            work,
        )
        engine = {labels[index]: asdict(row) for index, row in built.items()}
    results = {
        "parameters": loaded.card.parameters,
        "calibration": Path(options.calib).name,
        "text": Path(options.text).name,
        "fit_tokens": fit.numel(),
        "tokens": tokens.numel(),
        "seconds_evidence": gathered,
        "methods": methods,
        "engine": engine,
    }
    everything = found_before()
    everything[Path(options.model).name] = results
    keep(everything)


if __name__ == "__main__":
    main()
