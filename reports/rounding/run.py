"""Roundings on the engine: loss by width, by fitted tokens and across domains, and what they cost.

Run from the repository's root with

    python -m reports.rounding.run                       # the embedded model alone
    python -m reports.rounding.run --shared FOLDER       # also FOLDER/models/qwen2-8m, with FOLDER/data/wikitext2

Writes ``results.json`` and ``README.md`` beside this file. All losses are mean KL divergences per token on tokens
that nothing was fitted to, all linears at one width, block 64, memory normal. Times are of the processor, one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qplan.formats import QuantFormat
from qplan.mnn.build.exporter import export_skeleton
from qplan.model.replace import with_weights
from qplan.rounding.curvature import DAMPING, Curvature
from qplan.rounding.gptq import SWEEPS, gptq
from qplan.rounding.methods import round_with
from qplan.rounding.moments import Moments
from qplan.rounding.round_all import round_all
from qplan.rounding.rounder import Rounder, best_rows, one_thread
from qplan.rounding.stored_cache import StoredCache
from qplan.roundings import CANDIDATES, METHODS, ROUNDINGS
from qplan.sensitivity.kept_logits import KeptLogits, kept_logits
from qplan.verify.reference import torch_logits
from reports.rounding.on_engine import build, engine_nats, exported_nats
from reports.rounding.page import write_page
from reports.rounding.subject import Subject, load_subject
from reports.sensitivity.cost import Cost, cost_of

HOME = Path(__file__).parent
WIDTHS = (8, 4, 3, 2)
FIT_TOKENS = 32768
TOKEN_COUNTS = (256, 1024, 4096, 16384, 32768)
SHIFT_WIDTHS = (4,)
LAYER = (2048, 2048)
"""Output and input features of the layer that roundings are timed on."""


@dataclass(frozen=True)
class Bench:
    """One model's part of the benchmark."""

    subject: Subject
    work: Path
    moments: dict[str, Moments]
    """Moments by domain and tokens: ``code fit``, ``code judge``, ..."""
    references: Mapping[str, KeptLogits]
    """FP32's logits on every domain's test tokens."""

    def rounder(self, how: str, domain: str, fit: Moments | None = None, label: str = "") -> Rounder:
        """A rounder fitted to a domain."""
        folder = self.work / f"{domain}{label}"
        fitted = fit or self.moments[f"{domain} fit"]
        return self.subject.rounder(how, fitted, self.moments[f"{domain} judge"], folder)

    def by_width(self) -> Iterator[dict[str, Any]]:
        """Every rounding at every width, in torch and on the engine, and the exporter's own."""
        home = self.subject.home
        reference = self.references[home]
        skeleton = export_skeleton(self.subject.loaded.folder, self.work / "skeleton")
        for bits in WIDTHS:
            for how in ROUNDINGS:
                rounder = self.rounder(how, home)
                emulated = self.subject.torch_nats(rounder, bits, reference)
                build(self.subject, skeleton, rounder, bits, self.work / "built")
                measured = engine_nats(self.subject, self.work / "built", reference)
                yield {"bits": bits, "rounding": how, "kl_nats": measured, "torch_nats": emulated}
            theirs = exported_nats(self.subject, bits, self.work / "exported", reference, "--hqq")
            yield {"bits": bits, "rounding": "llmexport --hqq", "kl_nats": theirs, "torch_nats": None}

    def by_tokens(self) -> Iterator[dict[str, Any]]:
        """``gptq`` and ``auto`` fitted to more and more tokens, in torch."""
        home = self.subject.home
        fit = self.subject.domains[home].fit
        for count in TOKEN_COUNTS:
            rows = fit[: max(1, count // fit.shape[1])]
            moments = self.subject.moments(rows, self.work / f"moments-{count}")
            for how in ("gptq", "auto"):
                rounder = self.rounder(how, home, moments, f"-{count}")
                nats = self.subject.torch_nats(rounder, 4, self.references[home])
                yield {"tokens": rows.numel(), "rounding": how, "kl_nats": nats}
            if len(rows) == len(fit):
                return

    def without(self) -> Iterator[dict[str, Any]]:
        """What parts of ``gptq`` gain, at 4 bits, in torch."""
        subject, moments = self.subject, self.moments[f"{self.subject.home} fit"]
        head = subject.loaded.architecture.head
        logits_alone = Curvature(subject.head_moments(subject.domains[subject.home].fit))
        curvatures = {key: Curvature(moments.of(key)) for key in dict.fromkeys(moments.key_of.values())}
        variants: dict[str, tuple[int, Mapping[str, Curvature]]] = {
            "as it is": (SWEEPS, {}),
            "without refinement": (0, {}),
            "1 sweep of refinement": (1, {}),
            "8 sweeps of refinement": (8, {}),
            "10 times the damping": (SWEEPS, {k: Curvature(c.moments, 10 * DAMPING) for k, c in curvatures.items()}),
            "head fitted to its logits alone": (SWEEPS, {head: logits_alone}),
        }
        for name, (sweeps, other) in variants.items():
            stored = {
                spec: gptq(
                    subject.loaded.weight(spec),
                    fmt,
                    other.get(moments.key_of[spec], curvatures[moments.key_of[spec]]),
                    sweeps=sweeps,
                ).dequantize()
                for spec, fmt in subject.formats(4).items()
            }
            with with_weights(subject.loaded, stored):
                reference = self.references[subject.home]
                nats = reference.compare(lambda ids: torch_logits(subject.loaded, ids)).kl_nats
            yield {"variant": name, "kl_nats": nats}

    def across_domains(self) -> Iterator[dict[str, Any]]:
        """``auto`` fitted to one kind of text and judged on another, in torch."""
        for bits in SHIFT_WIDTHS:
            for test, reference in self.references.items():
                nearest = self.subject.torch_nats(self.rounder("rtn", test), bits, reference)
                row: dict[str, Any] = {"bits": bits, "test": test, "rtn_nats": nearest}
                for fit in self.references:
                    row[f"{fit}_nats"] = self.subject.torch_nats(self.rounder("auto", fit), bits, reference)
                yield row


def costs(device: str) -> Iterator[dict[str, Any]]:
    """Seconds per million weights and memory of every rounding of one layer at 4 bits."""
    generator = torch.Generator().manual_seed(0)
    out_features, in_features = LAYER
    weight = torch.randn(LAYER, generator=generator).to(device) / in_features**0.5
    mixing = torch.randn(in_features, in_features, generator=generator) / in_features**0.5
    inputs = torch.randn(2 * in_features, in_features, generator=generator) @ (mixing + torch.eye(in_features) / 2)
    curvature = Curvature((inputs.T @ inputs / len(inputs)).to(device))
    millions = out_features * in_features / 1e6
    fmt = QuantFormat(4)
    jobs: dict[str, Callable[[], object]] = {
        "ordering and factoring, once per input": lambda: curvature.ordered(64),
        **{name: partial(round_with, name, weight, fmt, curvature) for name in METHODS},
        "auto": lambda: best_rows(
            weight, [round_with(how, weight, fmt, curvature) for how in CANDIDATES], curvature.moments
        ),
    }
    with one_thread():
        found = {name: cost_of(job) if device == "cpu" else _cost_on_gpu(job) for name, job in jobs.items()}
    for name, cost in found.items():
        yield {"rounding": name, "seconds_per_million": cost.seconds / millions, "peak_mib": cost.peak_mib}


def _cost_on_gpu(work: Callable[[], object]) -> Cost:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, began = torch.cuda.memory_allocated(), time.perf_counter()
    work()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return Cost(seconds, (torch.cuda.max_memory_allocated() - before) / 2**20)


def clock(bench: Bench) -> Iterator[dict[str, Any]]:
    """Wall-clock seconds to round all linears at 4 bits with one job and with two."""
    menu = {name: (fmt,) for name, fmt in bench.subject.formats(4).items()}
    for count in (1, 2):
        first = bench.rounder("gptq", bench.subject.home)
        cache = StoredCache(bench.work / f"jobs-{count}", {"jobs": str(count)})
        rounder = Rounder(first.loaded, "gptq", first.moments, cache=cache)
        began = time.perf_counter()
        round_all(rounder, menu, jobs=count)
        yield {"jobs": count, "seconds": time.perf_counter() - began}


def run(subject: Subject, work: Path) -> dict[str, Any]:
    """All tables of one model."""
    moments: dict[str, Moments] = {}
    gathering: dict[str, Any] = {}
    for name, domain in subject.domains.items():
        for part, tokens in (("fit", domain.fit), ("judge", domain.judge)):
            label = f"{name} {part}"
            spent = cost_of(partial(_gather, subject, tokens, work / label, moments))
            gathering[label] = {"tokens": tokens.numel(), "seconds": spent.seconds, "peak_mib": spent.peak_mib}
            print(f"{label}: {spent}", flush=True)
    with ExitStack() as stack:
        references = {
            name: stack.enter_context(kept_logits(subject.loaded, domain.test.numpy()))
            for name, domain in subject.domains.items()
        }
        bench = Bench(subject, work, moments, references)
        tables = {
            "by_width": bench.by_width(),
            "by_tokens": bench.by_tokens(),
            "without": bench.without(),
            "across_domains": bench.across_domains(),
            "jobs": clock(bench),
        }
        found = {name: [_said(name, row) for row in rows] for name, rows in tables.items()}
    card = subject.loaded.card
    described = {"parameters": card.parameters, "tensors": len(card.tensors), "tied": card.tensor("lm_head").tied}
    return {"model": described, "home": subject.home, "gathering": gathering, **found}


def _gather(subject: Subject, tokens: torch.Tensor, folder: Path, into: dict[str, Moments]) -> None:
    into[folder.name] = subject.moments(tokens, folder)


def _said(name: str, row: dict[str, Any]) -> dict[str, Any]:
    print(name, row, flush=True)
    return row


def main() -> None:
    """Run for the embedded model, and for qwen2-8m if it is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, help="folder with models/qwen2-8m and data/wikitext2")
    parser.add_argument("--only", choices=("embedded", "qwen2-8m", "cost"), help="part to run again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wikitext = None if options.shared is None else options.shared / "data" / "wikitext2"
    models: dict[str, Path | None] = {"embedded": None}
    if options.shared is not None:
        models["qwen2-8m"] = options.shared / "models" / "qwen2-8m"
    for name, folder in models.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="qplan-rounding-") as work:
                _add("models", name, run(load_subject(folder, FIT_TOKENS, wikitext), Path(work)))
    if options.only in (None, "cost"):
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        for device in devices:
            _add("cost", device, [_said(device, row) for row in costs(device)])


def _add(part: str, name: str, found: object) -> None:
    """Add to the results that are on disk now: models may run side by side."""
    path = HOME / "results.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results.setdefault(part, {})[name] = found
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_page(results, HOME / "README.md")


if __name__ == "__main__":
    main()
