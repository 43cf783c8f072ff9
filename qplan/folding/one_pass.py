"""Losses of every format, and the folds that pay, from one pass there and one back; see `qplan.model.layerwise`.

On the way there the inputs' second moments are gathered that rounding is fitted to. On the way back, where everything
that a layer's linears saw is at hand, its sites' scales are fitted (`qplan.folding.fit`), a sample of output features
is rounded as the run rounds, with and without the scales, and the better of the two is estimated in every format
(`qplan.sensitivity.layer_losses`). A tied head comes last, since its lookups' gradients do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from qplan.folding.curvatures import LayerCurvatures
from qplan.folding.evidence import Evidence
from qplan.folding.fit import expected_loss, fit_scales
from qplan.folding.fold import FoldSite, fold_sites
from qplan.folding.witness import Witness
from qplan.formats import QuantFormat
from qplan.model.layerwise import LayerTrace, WayBack
from qplan.rounding import Int8Activations
from qplan.rounding.moments import Moments
from qplan.run.fold_draft import FoldDraft
from qplan.run.journal import ReferenceRecord, cell_of
from qplan.run.measurement import Measurement
from qplan.sensitivity.analysis import Analysis
from qplan.sensitivity.loss_tasks import LossItem, losses_by
from qplan.sensitivity.seen import FormatLoss, Seen
from qplan.sensitivity.views import Views
from qplan.settings import Memory, Progress, memories_of
from qplan.spread.work import Workers
from qplan.uniform import uniform_formats

_ORIGINAL, _FOLDED = "original", "folded"

BITS = (8, 4)
"""Widths of the uniform models whose losses decide about a fold."""

_SWEEPS = 0
"""Passes of refinement after GPTQ where a fold is decided: they help with and without it."""


@dataclass
class OnePass:
    """The way back of one analysis."""

    analysis: Analysis
    witnesses: Sequence[Tensor]
    """Token ids that scales are fitted to, int64 ``[rows, seq_len]`` each."""
    moments: Moments | None
    """Of the inputs that rounding is fitted to, without those of a tied head's lookups; None to round to nearest."""
    drawn: int
    """Output features to draw of every tensor."""
    fold: bool
    """Whether scales may move."""
    draft: FoldDraft
    """Keeps what was decided about sites."""
    keep: Callable[[Seen, Tensor | None], None] | None = None
    """Called once per tensor, with the factors of its columns."""
    workers: Workers | None = None
    """Of a cluster, who find the losses of a layer's tensors; what decides about folds is found here."""
    half: bool = False
    """Whether slopes at inputs are products of bfloat16, see `qplan.model.half_products`."""

    def run(self, way: WayBack, progress: Progress | None = None) -> None:
        """Go back; what is known already is left as it is."""
        held: LayerTrace | None = None
        loaded = self.analysis.loaded
        layers, tied = len(loaded.layers), loaded.card.tensor(loaded.architecture.head).tied
        parts = layers + (2 if tied else 1)
        for trace in way.traces():
            done = layers + 1 - trace.index
            if trace.index == layers:
                self._keep_reference(way)
            if trace.index == layers and tied:
                held = trace
            else:
                self._layer(trace, ())
            del trace  # the next one needs its memory
            if progress is not None:
                progress(done, parts)
        if held is not None:
            self._layer(held, way.lookups)
            if progress is not None:
                progress(parts, parts)

    def _keep_reference(self, way: WayBack) -> None:
        for batch, nll in enumerate(way.nll[: len(self.analysis.batches)]):
            if batch not in self.analysis.kept.references:
                self.analysis.kept.add_reference(ReferenceRecord(batch, len(nll), float(nll.mean())))

    @cached_property
    def views(self) -> Views:
        """Looks at traces for losses."""
        analysis, judged = self.analysis, self.moments is not None
        return Views(analysis.loaded, analysis.batches, self.drawn, analysis.conditions.seed, judged, self.half)

    @cached_property
    def _witness(self) -> Witness:
        return Witness(self.analysis.loaded, len(self.analysis.batches), self.witnesses, self.half)

    @cached_property
    def _sites(self) -> dict[str, FoldSite]:
        """Sites by each of their readers."""
        sites = fold_sites(self.analysis.loaded) if self.fold else ()
        return {reader: site for site in sites for reader in site.readers}

    @cached_property
    def _uniform(self) -> dict[str, dict[str, QuantFormat]]:
        return {f"int{bits}": uniform_formats(self.analysis.loaded.card, bits) for bits in BITS}

    def _layer(self, trace: LayerTrace, lookups: Sequence[Tensor]) -> None:
        """Decide about the sites of a layer, and estimate its losses."""
        seen = {view.name: view for view in self.views.of(trace, lookups)}
        behind = lookups[len(self.analysis.batches) :]
        flat = torch.cat(list(behind)).flatten(0, -2).float() if behind else None
        curvatures = LayerCurvatures(self.moments, self.analysis.conditions.rounding, flat)
        sites = {site.name: site for name in seen if (site := self._sites.get(name)) is not None}
        fresh = [site for site in sites.values() if site.name not in self.draft.losses]
        for site in fresh:
            evidence = self._witness.of(site, trace, lookups)
            self._decide(evidence, [seen[name] for name in site.readers], curvatures)
        if fresh:
            self.draft.write()
        groups = _alike(seen.values(), self.analysis.menu)
        asked = (item for group in groups if (item := self._asked(group, curvatures)) is not None)
        for item, found in self._losses(asked):
            self._journal(item.group, found)
        for view in (view for group in groups for view in group):
            if self.keep is not None:
                self.keep(view, self.columns(view.name))

    def columns(self, name: str) -> Tensor | None:
        """Factors ``[in_features]`` of a tensor's columns; None if they stay as they are, or nothing is decided."""
        site = self._sites.get(name)
        if site is None or site.name not in self.draft.scales:
            return None
        return site.expand(torch.tensor(self.draft.scales[site.name], device=self.analysis.loaded.device))

    def _decide(self, evidence: Evidence, seen: Sequence[Seen], curvatures: LayerCurvatures) -> None:
        """Fit a site's scales, and keep them if its readers lose less with them."""
        loaded, memories, site = self.analysis.loaded, memories_of(self.analysis.conditions.memory), evidence.site
        losses: dict[str, dict[str, float]] = {}
        scale: Tensor | None = None
        if not evidence.flat:
            plans = list(self._uniform.values())
            totals = expected_loss(evidence, loaded, torch.ones(site.channels, device=loaded.device), plans, memories)
            scale = fit_scales(evidence, loaded, plans, totals.clamp(min=1e-30), memories)
        candidates = {_ORIGINAL: None} | ({} if scale is None else {_FOLDED: site.expand(scale)})
        for label, columns in candidates.items():
            losses[label] = self._uniform_losses(seen, columns, curvatures)
        before, after = losses[_ORIGINAL], losses.get(_FOLDED, {})
        pays = sum(math.log(after[key] / value) for key, value in before.items() if value > 0 and after.get(key)) < 0
        if pays and scale is not None:
            self.draft.scales[site.name] = scale.tolist()
        found = {f"{_ORIGINAL}, {key}": value for key, value in before.items()}
        found |= {f"{_FOLDED}, {key}": value for key, value in (after if pays else before).items()}
        self.draft.losses[site.name] = found

    def _uniform_losses(
        self, seen: Sequence[Seen], columns: Tensor | None, curvatures: LayerCurvatures
    ) -> dict[str, float]:
        """Squares of tensors in MNN's uniform models, by model and memory setting."""
        memories = memories_of(self.analysis.conditions.memory)
        totals: dict[str, float] = {}
        menu = {view.name: tuple(plan[view.name] for plan in self._uniform.values()) for view in seen}
        for group in _alike(seen, menu):
            formats = menu[group[0].name]
            rounding, curvature = curvatures.of(group[0], columns, rough=True)
            item = LossItem(group, tuple(dict.fromkeys(formats)), rounding, curvature, columns, _SWEEPS)
            for found in item.losses(self._activations):
                for label, fmt in zip(self._uniform, formats, strict=True):
                    for memory in memories:
                        key = f"{label}, memory {memory}"
                        totals[key] = totals.get(key, 0.0) + float(self._squares(found[fmt], memory).sum())
        return totals

    @staticmethod
    def _squares(found: FormatLoss, memory: Memory) -> Tensor:
        return found.weights + found.activations if memory == "low" else found.weights

    @property
    def _activations(self) -> Int8Activations | None:
        return self.analysis.activations if self.analysis.conditions.memory == "low" else None

    def _losses(self, items: Iterable[LossItem]) -> Iterator[tuple[LossItem, list[dict[QuantFormat, FormatLoss]]]]:
        """The losses of items in their order; one item after the other is made unless workers find them."""
        if self.workers is None:
            yield from ((item, item.losses(self._activations)) for item in items)
            return
        every = list(items)
        yield from zip(every, losses_by(self.workers, every, self._activations), strict=True)

    def _asked(self, group: Sequence[Seen], curvatures: LayerCurvatures) -> LossItem | None:
        """Tensors with one input and one menu in every format that is not journaled yet; None if all are."""
        kept, memories = self.analysis.kept, memories_of(self.analysis.conditions.memory)
        batches = range(len(self.analysis.batches))
        wanted = [
            fmt
            for fmt in self.analysis.menu[group[0].name]
            if not all(
                (view.name, fmt.name, memory, batch, "gradient") in kept.measurements
                for view in group
                for memory in memories
                for batch in batches
            )
        ]
        if not wanted:
            return None
        columns = self.columns(group[0].name)
        parts = self._activations is not None
        return LossItem(group, wanted, *curvatures.of(group[0], columns), columns, parts=parts)

    def _journal(self, group: Sequence[Seen], found: Sequence[Mapping[QuantFormat, FormatLoss]]) -> None:
        kept, memories = self.analysis.kept, memories_of(self.analysis.conditions.memory)
        for view, by_format in zip(group, found, strict=True):
            least_peak = view.least_peak(self.columns(view.name))
            for fmt, loss in by_format.items():
                for memory in memories:
                    for measurement in self._measurements(view, fmt, loss, memory, least_peak):
                        if cell_of(measurement) not in kept.measurements:
                            kept.add(measurement)

    def _measurements(
        self, view: Seen, fmt: QuantFormat, found: FormatLoss, memory: Memory, least_peak: float
    ) -> Iterator[Measurement]:
        """The loss of each batch."""
        batches = self.analysis.batches
        length = batches[0].shape[1]
        nats = self._squares(found, memory) * (0.5 / length)
        noise = found.noise + (found.activation_noise if memory == "low" else 0.0)
        sqnr_db = math.inf if noise == 0 else 10 * math.log10(view.signal / noise) if view.signal else -math.inf
        # what drawing features may have missed is the same in all batches, and must not average out over them
        sampling = 0.5 * found.weights_stderr / sum(batch.numel() for batch in batches) * math.sqrt(len(batches))
        parts = {name: squares * (0.5 / length) for name, squares in found.parts.items()} if memory == "low" else {}
        start = 0
        for index, batch in enumerate(batches):
            rows = slice(start, start + len(batch))
            own = nats[rows]
            start += len(batch)
            spread = float(own.std()) / math.sqrt(len(own)) if len(own) > 1 else 0.0
            yield Measurement(
                tensor=view.name,
                format=fmt.name,
                memory=memory,
                batch=index,
                tokens=batch.numel(),
                kl_nats=float(own.mean()),
                sqnr_db=sqnr_db,
                cosine=1 / math.sqrt(1 + 10 ** (-sqnr_db / 10)),
                source="gradient",
                stderr_nats=math.hypot(spread, sampling),
                least_peak=least_peak if math.isfinite(least_peak) else None,
                layer_peak=view.layer_peak,
                **{name: float(part[rows].mean()) for name, part in parts.items()},
            )


def _alike(seen: Iterable[Seen], menu: Mapping[str, Sequence[QuantFormat]]) -> list[list[Seen]]:
    """Tensors with the same input and the same formats, together."""
    groups: dict[tuple[int, tuple[QuantFormat, ...]], list[Seen]] = {}
    for view in seen:
        groups.setdefault((id(view.inputs), tuple(menu[view.name])), []).append(view)
    return list(groups.values())


def label_seeds(seed: int, batches: int) -> list[int]:
    """Seeds for the labels of each batch; an interrupted run draws the same again."""
    return [int(np.random.SeedSequence([seed, batch]).generate_state(1, np.uint64)[0]) for batch in range(batches)]


def model_losses(losses: Mapping[str, Mapping[str, float]], tokens: int) -> dict[str, dict[str, float]]:
    """Losses of uniform models in nats per token, by candidate: the sum over sites of what a draft keeps of each."""
    totals: dict[str, dict[str, float]] = {_ORIGINAL: {}, _FOLDED: {}}
    for found in losses.values():
        for key, squares in found.items():
            candidate, _, model = key.partition(", ")
            totals[candidate][model] = totals[candidate].get(model, 0.0) + 0.5 * squares / tokens
    return totals
