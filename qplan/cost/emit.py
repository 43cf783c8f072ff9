"""What an emit takes in torch, from the shape of the model: reading it, choosing a plan, and all that this measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qplan.cost.arm import ArmCost, proofs_at_once
from qplan.cost.engine import EngineCost
from qplan.cost.expected import ExpectedStage
from qplan.cost.forward import (
    COMPARED_VALUES,
    FLOAT_BYTES,
    NEAREST_VALUES,
    REFERENCE_VALUES,
    all_forward,
    factored,
    layer_forward,
    rounding,
    rounding_again,
)
from qplan.cost.one_pass import PROCESS_BYTES
from qplan.cost.shape import Input, Shape
from qplan.cost.training import FIT_ROWS, LAYER_EPOCHS, TrainingTokens, layer_forwards, restarts
from qplan.cost.work import NOTHING, Machine, Work
from qplan.settings import Precision
from qplan.tensors import TensorSpec
from qplan.uniform import COMPARED

LOADING, EXPORTING, REFERENCE, GATE = "loading", "exporting the graph", "FP32 reference", "FP16 on the engine"
KEEPING, ROUNDING, COMPARING = "FP32 reference for planning", "choosing integers", "whole models: plan and uniform"
REPAIRING, ACTIVATIONS = "promotions and demotions", "int8 activations per token and per block"
TUNING, JUDGING = "fitting the plan's integers in order", "whole models: integers fitted in order"
TRAINING, JUDGING_SCALES = "training the plan's scales", "whole models: trained scales"
BUILDING, PROVING, REPORTING = "building the plan", "proof on the engine", "report"
CACHING = "KV cache on the engine"
PROVING_ARM = "proof on ARM, emulated"
"""Names of an emit's stages."""

# counted in processor time beside `qplan.jobs.machine`'s own numbers, and set from emits of the embedded
# model and SmolLM2-135M
_ACTIVATION_VALUES = 10
"""Numbers read and written per activation that is rounded to int8."""
_STORED_VALUES = 4
"""Per weight that is turned from integers into floats."""
_TRAINED_VALUES, _TRAINED_LOGIT_VALUES = 20, 20
"""Numbers read and written per weight and step of training, and per logit."""
_GRAPH_VALUES = 6
"""Numbers that a layer's graph holds per number that its linears read or write."""
_LOGIT_COPIES = 5
"""Of the logits that are made at a time."""
_LEARNED_COPIES = 6
"""Of a layer that is trained: its weights, how far each moved, the gradients of both, the best so far, and one more."""
_VALUES_OF_GRID = 5
"""Of a scale or zero in training: itself, its gradient, two moments, the best."""
_LEAST_BLOCK = 32
"""Weights to a scale, at least."""
_FORK = 0.6
"""Of a pass, what a plan takes that differs in one tensor from another."""
_REPAIR_SWEEPS = 3
"""The plan, moves one by one, and their combination."""
_MOVED = 15
"""Tensors that a repair rounds to formats that the plan does not have, at most; wide ones take longest."""
_SOLVED_S = 2e-4
"""Seconds of a solver per budget and format of a tensor."""
_HALF_BITS = 6
"""Mean bits up to which a plan usually loses enough to be compared by products of bfloat16: `qplan.choosing.halves`."""
_WORKING_BYTES = 100e6
"""What torch's libraries and the allocator hold once they compute, where nothing goes back."""
_LOADING_S, _REPORT_S = 0.5, 1.0
"""Of what does not grow with the model: reading the run and the tokenizer; pages and figures."""


@dataclass(frozen=True, kw_only=True)
class EmitAsked:
    """What the work of an emit depends on, beside the model."""

    judged: int
    """Tokens that built models are measured on."""
    planning: int
    """Tokens that plans are measured on."""
    seq_len: int
    checkpoint_bytes: int
    """Of all models that are loaded."""
    models: int
    """How many: the folded and the one before folding, or one."""
    held: int
    """Of these, those whose weights stay in memory; those of others are read when they are used."""
    fits: bool
    """Whether rounding is fitted to moments."""
    chosen: bool
    """Whether it chooses between candidates (``auto``)."""
    solves: bool
    """Whether a plan is made, and none was given."""
    choices: int
    """Formats of all tensors together."""
    memories: int
    """Memory settings that losses are known under."""
    evaluations: int
    """Whole models that a repair measures."""
    weighs_activations: bool
    """Whether scales of int8 activations may be per token or per block."""
    exports: int
    """Graphs to export."""
    export_bytes: float
    """Peak memory of an export."""
    rivals: int
    """Uniform models within the plan's limits that are built."""
    compared: int
    """Of these, those whose whole models are measured in torch."""
    budgets: int
    """Of the frontier in the report."""
    build: bool
    cache_tokens: int = 0
    """Tokens that KV caches are measured on; 0 for none."""
    cache_steps: int = 0
    """Of these, the last ones that come by themselves."""
    caches: int = 0
    """Ways to store the cache that may have to be measured."""
    fitted: int = 0
    """Tokens that the plan's integers are fitted to in order; 0 if they are not."""
    layers: bool = False
    """Whether each layer is trained with them."""
    trained: TrainingTokens | None = None
    """Tokens that the plan's scales are trained with; None if they are not."""
    steps: int = 0
    """Of that training."""
    weighed: int = 0
    """Tokens that decide whether those ship."""
    processors: int = 0
    """Emulated ARM processors that the plan is proved on."""
    precision: Precision = "low"
    """MNN's setting that the plan ships with."""

    @property
    def streamed(self) -> bool:
        """Whether weights of the plan's model are read when they are used."""
        return self.held == 0


@dataclass(frozen=True)
class EmitCost:
    """Work and memory of each stage."""

    shape: Shape
    asked: EmitAsked
    engine: EngineCost
    machine: Machine
    most_memory: float = math.inf
    """Limit on the memory that was given."""

    def stages(self) -> tuple[ExpectedStage, ...]:
        """The stages in their order."""
        asked = self.asked
        found = [self._loading()]
        if asked.exports:
            found.append(self._exporting())
        if asked.build:
            found += [self._reference(REFERENCE, asked.judged), self._gate()]
        if asked.build and asked.cache_tokens:
            found.append(self._caching())
        found += self._planning()
        if asked.fitted:
            found += [self._tuning(), self._judging(JUDGING, 3)]
        if asked.trained is not None:
            found += [self._training(asked.trained), self._judging(JUDGING_SCALES, 1 if asked.fitted else 2)]
        if asked.build:
            found += [self._building(), self._proving()]
        if asked.processors:
            found.append(self._proving_on_arm())
        found.append(self._reporting())
        return tuple(found)

    def _stage(
        self,
        name: str,
        parts: Sequence[Work],
        memory: float,
        *,
        disk: float = 0.0,
        temporary: float = 0.0,
        at_once: int = 1,
        units: int = 0,
    ) -> ExpectedStage:
        """A stage that takes so much memory beside the process and weights that stay there."""
        times = [part.seconds(self.machine, at_once) for part in parts]
        return ExpectedStage(name, sum(times), self.own_bytes + memory, disk, tuple(times), units, temporary)

    @property
    def own_bytes(self) -> float:
        """What this process holds all the time."""
        asked = self.asked
        return PROCESS_BYTES + FLOAT_BYTES * self.shape.parameters * asked.held

    def _forward(self, tokens: float) -> Work:
        return all_forward(self.shape, int(tokens), self.asked.seq_len, streamed=self.asked.streamed)

    def _batch(self, tokens: int, variants: int) -> float:
        """Bytes of hidden states, logits and a layer on its way: one row at a time, in all variants."""
        shape, row = self.shape, self.asked.seq_len
        hidden = min(1 << 29, FLOAT_BYTES * tokens * shape.hidden * max(1, variants)) * 2
        layer = FLOAT_BYTES * row * max(sum(given.width + given.outputs for given in la) for la in shape.layers)
        logits = 5 * FLOAT_BYTES * row * shape.head.outputs
        return _WORKING_BYTES + hidden + max(layer, logits)

    @property
    def _layer_weights(self) -> int:
        """Weights of the largest layer."""
        return max(sum(given.weights for given in layer) for layer in self.shape.layers)

    @property
    def _read(self) -> float:
        """Bytes of weights that are read when they are used: a layer's or the head's."""
        most = max(self._layer_weights, self.shape.head.weights)
        return float(FLOAT_BYTES * most) if self.asked.streamed else 0.0

    @property
    def _kept_weights(self) -> float:
        """Bytes of stored weights as floats: a layer's, the head's where they are few enough, and those read."""
        head = FLOAT_BYTES * self.shape.head.weights
        return FLOAT_BYTES * self._layer_weights + (head if head < 1 << 30 else 0.0) + self._read

    def _loading(self) -> ExpectedStage:
        asked = self.asked
        work = Work(
            read=float(asked.checkpoint_bytes),
            values=4.0 * self.shape.parameters * asked.models,
            seconds_anywhere=_LOADING_S,
        )
        return self._stage(LOADING, [work], 0.0 if asked.streamed else asked.checkpoint_bytes / asked.models)

    def _exporting(self) -> ExpectedStage:
        asked = self.asked
        one = self.engine.exported()
        return self._stage(
            EXPORTING, [one] * asked.exports, asked.export_bytes, disk=asked.exports * self.engine.graph_bytes
        )

    def _reference(self, name: str, tokens: int) -> ExpectedStage:
        logits = float(FLOAT_BYTES * tokens * self.shape.head.outputs)
        return self._stage(name, [self._forward(tokens)], self._batch(tokens, 1) + self._read, temporary=logits)

    def _gate(self) -> ExpectedStage:
        engine, work = self.engine, NOTHING
        work += engine.built(16) + engine.exact(16) + self._stored(16, nearest=True).times(2)
        work += self._forward(engine.gate_tokens)
        # a model in fp16 is there as long as it is run, here and in the proof
        return self._stage(GATE, [work], self._with_engine(self._whole_stored, 16), disk=engine.file_bytes(16))

    def _with_engine(self, working: float, bits: float) -> float:
        """Bytes with an engine's process beside this one, which takes no more than is left for it."""
        left = max(0.0, self.most_memory - self.own_bytes - working)
        return working + min(left, self.engine.peak(bits))

    @property
    def _whole_stored(self) -> float:
        """Bytes of stored weights that comparing logits exactly keeps as floats."""
        return min(1 << 30, FLOAT_BYTES * sum(given.weights for given in self.shape.inputs)) + _WORKING_BYTES

    def _stored(self, bits: float, *, nearest: bool) -> Work:
        """All weights turned into the values that are stored; to nearest, from the weights as they were read."""
        values = NEAREST_VALUES if nearest and bits < 16 else _STORED_VALUES  # noqa: PLR2004
        weights = float(sum(given.weights for given in self.shape.inputs))
        return Work(values=values * weights, read=2 * weights if nearest and self.asked.streamed else 0.0)

    @property
    def _planned(self) -> Work:
        """The same of a plan, whose integers are kept unless they are rounded to nearest."""
        return self._stored(8, nearest=not self.asked.fits)

    def _swept(
        self, tokens: float, variants: float, sweeps: int = 1, *, lossy: bool = True, half: bool = False
    ) -> Work:
        """Whole models on their way through all layers in so many sweeps, and what their logits lose."""
        work = self._forward(tokens)
        if half and self.machine.bf16_pays and self.engine.bits <= _HALF_BITS:
            work = replace(work, flops=0.0, half_flops=work.flops)
        numbers = sum(given.width * given.share for given in self.shape.inputs)
        work += Work(values=(_ACTIVATION_VALUES * numbers if lossy else 0.0) * tokens)
        logits = float(tokens * self.shape.head.outputs)
        work += Work(values=COMPARED_VALUES * logits)
        return work.times(variants) + Work(values=REFERENCE_VALUES * logits * sweeps)

    def _planning(self) -> list[ExpectedStage]:
        asked, tokens = self.asked, self.asked.planning
        found = [self._reference(KEEPING, tokens)]
        if asked.fits:
            found.append(self._rounding())
        if asked.solves:
            found.append(self._comparing())
            if asked.evaluations:
                found.append(self._repairing())
        if asked.weighs_activations:
            some = min(tokens, 512)
            work = self._swept(some, 4, half=True) + self._planned
            memory = self._batch(some, 4) + self._kept_weights
            found.append(self._stage(ACTIVATIONS, [work], memory, units=4 * some // asked.seq_len))
        return found

    def _rounding(self) -> ExpectedStage:
        work = NOTHING
        for given in self.shape.inputs:
            work += factored(given.width).times(1 - len(given.readers))  # once, and not for each of them
            for spec in given.readers:
                work += self._rounded(spec)
        disk = float(sum(spec.weights for spec in self.shape.card.tensors))
        tensors = len(self.shape.card.tensors)
        return self._stage(
            ROUNDING, [work], self._rounding_bytes, disk=disk, at_once=self.machine.processors, units=tensors
        )

    @property
    def _rounding_bytes(self) -> float:
        """Bytes of moments, their factors, and of copies of what is rounded at a time."""
        widest = max(given.width for given in self.shape.inputs)
        largest = max(spec.weights for spec in self.shape.card.tensors)
        numbers = 4.0 * widest**2 + self.machine.processors * 5.0 * min(largest, 1 << 24)
        return FLOAT_BYTES * numbers + _WORKING_BYTES

    def _rounded(self, spec: TensorSpec) -> Work:
        """A tensor rounded whole, in one format."""
        width = spec.in_features
        return factored(width) + rounding(width, spec.out_features, 1, fits=True, chosen=self.asked.chosen)

    def _comparing(self) -> ExpectedStage:
        """The plan and uniform under all settings, and the plan rounded to nearest: repairs seldom make another.

        On half of the tokens, which seldom leave a doubt.
        """
        asked, tokens = self.asked, self.asked.planning // 2
        variants = 2 * asked.memories + 1 + asked.compared
        work = self._swept(tokens, variants, variants // 2 + 1, half=True)
        work += self._planned + self._stored(8, nearest=True).times(2 + asked.compared)
        memory = self._batch(tokens, asked.memories) + self._kept_weights
        work += Work(seconds_anywhere=_SOLVED_S * asked.choices)
        return self._stage(COMPARING, [work], memory, units=variants * tokens // asked.seq_len)

    def _repairing(self) -> ExpectedStage:
        asked, tokens = self.asked, self.asked.planning / 2
        work = self._swept(tokens, asked.evaluations * _FORK, _REPAIR_SWEEPS, half=True)
        work += self._planned.times(3)
        if asked.fits:
            work += self._rounded(max(self.shape.card.tensors, key=lambda spec: spec.in_features)).times(_MOVED)
        memory = self._batch(int(tokens), asked.evaluations) + self._kept_weights
        return self._stage(REPAIRING, [work], memory, units=int(asked.evaluations * tokens) // asked.seq_len)

    def _caching(self) -> ExpectedStage:
        """The FP16 model with each cache, and the plan with its own and with one of floats."""
        engine, asked, tokens = self.engine, self.asked, self.asked.cache_tokens
        parts = [self._forward(tokens)]
        if asked.caches:
            parts[0] += engine.built(16) + self._stored(16, nearest=True)
        steps = min(tokens, asked.cache_steps)
        parts += [engine.in_parts("normal", 16, tokens - steps, steps)] * asked.caches
        parts += [engine.in_parts("low", engine.bits, tokens - steps, steps)] * 2
        widest = 16 if asked.caches else engine.bits
        disk = engine.file_bytes(16) if asked.caches else 0.0
        return self._stage(CACHING, parts, self._with_engine(_WORKING_BYTES, widest), disk=disk, units=len(parts))

    def _tuning(self) -> ExpectedStage:
        """Both models up to each input of every layer, and once behind it; sums, rounding and training there."""
        asked, shape, work = self.asked, self.shape, NOTHING
        tokens, hidden_bytes = asked.fitted, FLOAT_BYTES * asked.fitted * shape.hidden
        for layer in (*shape.layers, (shape.head,)):
            fitted = [place for place, given in enumerate(layer) if given.share == 1]
            for place in fitted:
                given, before = layer[place], layer[:place]
                if before:
                    work += layer_forward(before, tokens, asked.seq_len, shape.hidden).times(2)
                work += self._fitted(given, tokens)
            if layer[0] is not shape.head:
                work += layer_forward(layer, tokens, asked.seq_len, shape.hidden, streamed=asked.streamed).times(2)
                if asked.layers:
                    work += self._trained_layer(layer, tokens)
            work += Work(read=2.0 * hidden_bytes * (len(fitted) + 1), written=2.0 * hidden_bytes)
        widest = max(given.width for given in shape.inputs)
        # sums of one input beside both models; then its moments and their factors, and copies of what is rounded
        summed = self._batch(FIT_ROWS * asked.seq_len, 2) + self._kept_weights + 6 * FLOAT_BYTES * widest**2
        memory = max(summed, self._read + self._rounding_bytes)
        if asked.layers:
            graph = self._graph(FIT_ROWS * asked.seq_len) + _LEARNED_COPIES * FLOAT_BYTES * self._layer_weights
            memory = max(memory, _WORKING_BYTES + self._kept_weights + graph)
        disk = 4.0 * hidden_bytes + sum(spec.weights for spec in shape.card.tensors)
        return self._stage(
            TUNING,
            [work + self._planned.times(2)],
            memory,
            disk=disk,
            at_once=self.machine.processors,
            units=len(shape.layers) + 1,
        )

    def _trained_layer(self, layer: Sequence[Input], tokens: int) -> Work:
        """A layer's scales and integers: it runs on every batch, and back, and is made anew each time."""
        seq_len, batches = self.asked.seq_len, tokens // (FIT_ROWS * self.asked.seq_len)
        work = layer_forward(layer, tokens, seq_len, self.shape.hidden).times(layer_forwards())
        made = _TRAINED_VALUES * sum(given.weights for given in layer)
        return work + Work(values=float(made)).times(2 * LAYER_EPOCHS * batches)

    def _fitted(self, given: Input, tokens: int) -> Work:
        """Sums of two products per token, and for each reader roundings to a target of both halves of them."""
        square = float(given.width) ** 2
        batches = tokens / (FIT_ROWS * self.asked.seq_len)
        work = factored(given.width).times(3) + Work(
            flops=4.0 * tokens * square, values=_ACTIVATION_VALUES * tokens * given.width + 8.0 * square * batches
        )
        for spec in given.readers:
            work += Work(rounding_flops=16.0 * square * spec.out_features)
            work += rounding(given.width, spec.out_features, 1, fits=True, chosen=False)
            again = restarts(given.width, tokens, layers=self.asked.layers)
            work += rounding_again(given.width, spec.out_features, again)
        return work

    def _training(self, tokens: TrainingTokens) -> ExpectedStage:
        """The float model once; then forwards, and back through every layer, which runs again, to its weights too."""
        asked, shape = self.asked, self.shape
        weights = float(sum(given.weights for given in shape.inputs))
        there = self._forward(1) + self._activations
        back = self._forward(1) + self._activations + Work(flops=2 * self._forward(1).flops)
        # teacher's logits are made of its last layer's output, every time
        heads = Work(flops=2.0 * shape.head.weights, values=_TRAINED_LOGIT_VALUES * shape.head.outputs)
        work = self._forward(1).times(tokens.exact) + (there + heads).times(tokens.looked)
        work += (there + back + heads).times(tokens.trained)
        work += Work(values=_TRAINED_VALUES * weights).times(asked.steps)
        at_once = tokens.trained / max(1, asked.steps)
        exact = FLOAT_BYTES * shape.hidden * (tokens.exact + at_once * len(shape.layers))
        logits = _LOGIT_COPIES * max(1 << 28, FLOAT_BYTES * asked.seq_len * shape.head.outputs)
        grids = (1 + 2 * _VALUES_OF_GRID * FLOAT_BYTES / _LEAST_BLOCK) * weights
        matrices = 3 * FLOAT_BYTES * max(self._layer_weights, shape.head.weights)
        memory = _WORKING_BYTES + exact + grids + matrices + max(self._graph(at_once), logits)
        passes = tokens.passes(asked.weighed)
        return self._stage(f"{TRAINING}, {passes:.3g} passes", [work], memory, disk=weights + grids, units=asked.steps)

    def _graph(self, tokens: float) -> float:
        """Bytes of what one layer keeps of some tokens for the way back."""
        widest = max(sum(given.width + given.outputs for given in layer) for layer in self.shape.layers)
        return FLOAT_BYTES * tokens * _GRAPH_VALUES * widest

    @property
    def _activations(self) -> Work:
        """Int8 activations of a token."""
        return Work(values=_ACTIVATION_VALUES * sum(given.width * given.share for given in self.shape.inputs))

    def _judging(self, name: str, variants: int) -> ExpectedStage:
        """The plan in some variants: with the integers of each tensor by itself, fitted in order, and so on."""
        tokens = self.asked.weighed // (2 if name == JUDGING_SCALES else 1)
        work = self._forward(tokens) + self._swept(tokens, variants, variants) + self._planned.times(variants)
        logits = float(FLOAT_BYTES * tokens * self.shape.head.outputs)
        memory = self._batch(tokens, 1) + self._kept_weights
        return self._stage(name, [work], memory, units=variants * tokens // self.asked.seq_len, temporary=logits)

    def _building(self) -> ExpectedStage:
        engine = self.engine
        work, disk = engine.built(engine.bits) + self._planned, engine.file_bytes(engine.bits)
        return self._stage(BUILDING, [work], self._with_engine(_WORKING_BYTES, engine.bits), disk=disk)

    def _proving(self) -> ExpectedStage:
        engine, tokens, parts = self.engine, self.asked.judged, []
        every = [(float(bits), bits in engine.uniform) for bits in COMPARED.values()]
        for bits, wanted in [*every, *[(engine.bits, True)] * self.asked.rivals]:
            if not wanted:
                parts.append(NOTHING)
                continue
            work = engine.built(bits) + engine.measured(bits, tokens)
            floats = bits == 16  # noqa: PLR2004
            work += self._swept(tokens, 1 if floats else 2, lossy=not floats)
            work += self._stored(bits, nearest=True).times(2)  # built, and computed with
            parts.append(work)
        own = engine.measured(engine.bits, tokens, beside=self.asked.weighs_activations) + self._swept(tokens, 2)
        own += self._planned.times(2) + engine.exact(engine.bits)
        parts.append(own + self._forward(engine.gate_tokens))
        parts[0] += self._turns()
        widest = max((*engine.uniform, engine.bits))
        logits = 4.0 * FLOAT_BYTES * self.asked.seq_len * self.shape.head.outputs
        exact = self._with_engine(self._whole_stored, engine.bits)
        memory = max(exact, self._with_engine(_WORKING_BYTES + logits, widest))
        return self._stage(PROVING, parts, memory, at_once=engine.threads)

    def _turns(self) -> Work:
        """Uniform models with integers, which are built for it where they were measured before, beside the plan."""
        engine, options = self.engine, 2 if self.asked.weighs_activations else 1
        uniform = [bits for bits in COMPARED.values() if bits < 16]  # noqa: PLR2004
        work = engine.turns((*uniform, *(engine.bits for _ in range(options))))
        for bits in uniform:
            if bits not in engine.uniform:
                work += engine.built(bits) + self._stored(bits, nearest=True)
        return work

    def _proving_on_arm(self) -> ExpectedStage:
        limited = self.most_memory < math.inf
        at_once = 1 if limited else proofs_at_once(self.asked.processors, self.machine.processors)
        cost = ArmCost(self.engine, self.asked.processors, at_once, self.asked.judged, self.asked.precision)
        parts = [*map(self._forward, cost.predictions), *cost.runs()]
        return self._stage(PROVING_ARM, parts, cost.memory_bytes + _WORKING_BYTES, units=len(parts))

    def _reporting(self) -> ExpectedStage:
        asked = self.asked
        seconds = _REPORT_S + _SOLVED_S * asked.choices * asked.budgets
        return self._stage(REPORTING, [Work(seconds_anywhere=seconds)], _WORKING_BYTES)
