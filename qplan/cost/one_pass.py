"""What an analysis in one pass there and back takes, from the shape of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qplan.cost.expected import ExpectedStage
from qplan.cost.forward import FLOAT_BYTES, LOGIT_VALUES, all_forward, factored, layer_forward, rounding
from qplan.cost.shape import Input, Shape
from qplan.cost.training import TrainingTokens
from qplan.cost.work import NOTHING, Machine, Work
from qplan.formats import QuantFormat

_FLOAT, _DOUBLE = FLOAT_BYTES, 8

# counts of the code, and constants set from profiles of the embedded model, qwen2-8m and two layers of the 0.5B shape
_FIT_STEPS, _FIT_ROWS, _FIT_VALUES = 60, 512, 32
"""Steps of `qplan.folding.fit`, rows of each reader that one looks at, numbers it touches per weight of those."""
_FIT_COLUMNS = 12.0
"""Columns that rounding goes through in the time that such a step takes whatever its size: a second per layer."""
_ACTIVATION_VALUES = 28
"""Numbers read and written per activation that is rounded to int8 and compared."""
_LOGIT_COPIES = 5
"""Of the logits of a batch that are alive at once on the way back."""
_FEW_COPIES = 3
"""The same where nothing goes back."""
_WIDE = 8192
"""Input features above which one ordering is kept at a time: `qplan.sensitivity.layer_losses.MOST_AT_ONCE`."""
_GRAM_BLOCK = 512
"""Of `qplan.rounding.gram`."""
_FOLD_FORMATS, _FOLD_SWEEPS = 2, 0
"""Formats that a fold is decided by, and sweeps of refinement then, as of features that are not refined."""
_KIND_STEPS = 6700.0
"""Columns in the time that formats of one kind take of an input whatever its size: 0.4 s, on SmolLM2-135M and on
Qwen2.5-0.5B alike."""
_REFINED = 16
"""Of `qplan.sensitivity.weight_errors`."""
_HELD_BYTES = 1 << 30
"""Of a streamed layer's weights: `qplan.model.layerwise`."""
_STAND_INS, _STAND_IN_VALUES = 5, 12
"""Whole plans that are measured on weights made up for them, and numbers that making them reads and writes."""

_TRAINED_VALUES, _TRAINED_LOGIT_VALUES, _TRAINED_COPIES = 60, 40, 12
"""Numbers that a step reads and writes per weight, which it rounds there and back, and per logit of a token; copies of
the largest matrix and of a layer's inputs and outputs that its graph holds."""

FOLD_TRAINING = "training the fold"

PROCESS_BYTES = 480e6
"""Resident memory of Python with torch, transformers and a tokenizer."""

WORKING_BYTES = 150e6
"""What torch's libraries and the allocator hold beyond that once they compute."""


@dataclass(frozen=True, kw_only=True)
class OnePassOptions:
    """What the work of one pass depends on, beside the model."""

    judged: int
    """Tokens that losses are estimated on."""
    fit: int
    """Tokens that rounding is fitted to; 0 if it fits to nothing."""
    witnesses: int
    """Tokens that scales are fitted to."""
    seq_len: int
    batch_size: int
    """Sequences per pass."""
    formats: tuple[QuantFormat, ...]
    drawn: int
    """Output features drawn of each tensor."""
    head_drawn: int
    """Of the head."""
    chosen: bool
    """Whether rounding chooses between candidates (``auto``), each judged."""
    fold: bool
    """Whether folds are fitted place by place."""
    training: TrainingTokens | None = None
    """What goes through the model to train folds; None if they are not trained."""
    training_steps: int = 0
    half: bool = False
    """Whether gradients are products of bfloat16."""
    streamed: bool = False
    """Whether weights are read when they are used."""
    embedding: int = 0
    """Fewest tokens that an untied embedding is measured on."""
    measured_passes: float = 0.0
    """Most passes for measurements afterwards; one is once forwards and backwards over the judged tokens."""

    @property
    def kept(self) -> int:
        """Tokens that go back."""
        return self.judged + self.witnesses


@dataclass(frozen=True)
class OnePassCost:
    """Work and memory of each stage."""

    shape: Shape
    asked: OnePassOptions
    machine: Machine

    def stages(self) -> tuple[ExpectedStage, ...]:
        """The stages in their order."""
        found = [self._loading()]
        if self.asked.training is not None:
            found.append(self._training(self.asked.training))
        found += [self._there(), self._back()]
        if self.asked.fold:
            found.append(self._folding())
        if self.shape.card.embedding is not None:
            found.append(self._embedding())
        if self.asked.measured_passes:
            found.append(self._measuring())
        return tuple(found)

    def _stage(
        self, name: str, parts: Sequence[Work], memory: float, disk: float = 0.0, at_once: int = 1
    ) -> ExpectedStage:
        """A stage that takes so much memory beside the process and weights that stay there."""
        times = [part.seconds(self.machine, at_once) for part in parts]
        held = PROCESS_BYTES + memory + (0.0 if self.asked.streamed else _FLOAT * self.shape.parameters)
        return ExpectedStage(name, sum(times), held, disk, tuple(times))

    def _read(self, weights: float) -> float:
        """Bytes of weights that are read when they are used; none where all are in memory."""
        return _FLOAT * weights if self.asked.streamed else 0.0

    @property
    def _held(self) -> float:
        """Bytes of weights that are read for all batches of a layer, and of one that is not held."""
        layer = max(sum(given.weights for given in layer) for layer in self.shape.layers)
        return max(self._read(self._largest), min(float(_HELD_BYTES), self._read(layer)))

    def _loading(self) -> ExpectedStage:
        work = Work(read=2 * self.shape.checkpoint_bytes, values=4 * self.shape.parameters, seconds_anywhere=1)
        memory = self._read(self.shape.head.weights) if self.asked.streamed else self.shape.checkpoint_bytes
        return self._stage("loading", [work], memory)

    def _training(self, tokens: TrainingTokens) -> ExpectedStage:
        """The float model once; then the quantized one, there, and back through every layer, which runs again."""
        asked, shape, steps = self.asked, self.shape, self.asked.training_steps
        logits = Work(flops=2.0 * shape.head.weights, values=float(_TRAINED_LOGIT_VALUES * shape.head.outputs))
        one = self._all_forward(1) + Work(values=float(_ACTIVATION_VALUES * sum(given.width for given in shape.inputs)))
        work = self._all_forward(tokens.exact) + (one + logits).times(tokens.looked)
        work += (one.times(3) + logits).times(tokens.trained)
        work += Work(values=float(_TRAINED_VALUES * sum(given.weights for given in shape.inputs))).times(steps)
        at_once = tokens.trained / max(1, steps)
        exact = _FLOAT * shape.hidden * (tokens.exact + at_once * len(shape.layers))
        widest = max(sum(given.width + given.outputs for given in layer) for layer in shape.layers)
        graph = _TRAINED_COPIES * _FLOAT * (at_once * widest + self._largest)
        head = float(_LOGIT_COPIES) * max(1 << 28, _FLOAT * asked.seq_len * shape.head.outputs)
        head += self._read(shape.head.weights)
        memory = WORKING_BYTES + exact + max(graph, head) + self._second + self._held
        name = f"{FOLD_TRAINING}, {tokens.passes(asked.judged):.3g} passes"
        return self._stage(name, [work], memory, _FLOAT * shape.parameters)

    def _there(self) -> ExpectedStage:
        asked, shape = self.asked, self.shape
        tokens = asked.judged + (asked.fit or asked.witnesses)
        layers = [self._through(layer, tokens) + self._moments(layer, asked.fit) for layer in shape.layers]
        layers.append(self._moments([shape.head], asked.fit))
        largest = max(self._sums(layer) for layer in shape.layers) if asked.fit else 0.0
        memory = WORKING_BYTES + largest + self._batch() + _FLOAT * tokens * shape.hidden * 2
        memory += self._held
        disk = _FLOAT * sum(given.width**2 for given in shape.inputs) if asked.fit else 0.0
        disk += _FLOAT * asked.kept * shape.hidden * len(shape.layers)
        return self._stage("forward through all layers", layers, memory, disk)

    def _through(self, layer: Sequence[Input], tokens: int) -> Work:
        """A layer on the way there: products of what does not go back may be of bfloat16."""
        work = self._forward(layer, tokens)
        gone = 2.0 * (tokens - self.asked.kept) * sum(given.weights * given.share for given in layer)
        return replace(work, flops=work.flops - gone, half_flops=gone) if self.asked.half else work

    def _sums(self, layer: Sequence[Input]) -> float:
        """Bytes of a layer's moments while they are summed, and of the largest one while it is written."""
        return _DOUBLE * sum(given.width**2 for given in layer) + 2 * _FLOAT * max(given.width**2 for given in layer)

    def _batch(self) -> float:
        """Bytes of what one layer computes of one batch."""
        tokens = self.asked.batch_size * self.asked.seq_len
        return 2 * _FLOAT * tokens * max(sum(given.width + given.outputs for given in la) for la in self.shape.layers)

    def _back(self) -> ExpectedStage:
        asked, shape = self.asked, self.shape
        logits = 2.0 * shape.head.weights
        head = Work(flops=asked.kept * logits, values=LOGIT_VALUES * asked.kept * shape.head.outputs)
        head += self._gradients(asked.kept * logits)
        parts = [head]
        for layer in reversed(shape.layers):
            forward = self._forward(layer, asked.kept)
            again = replace(forward, flops=0.0) + self._gradients(forward.flops)
            found = forward + again + self._views(layer)
            parts.append(found + self._losses(layer))
        last = self._views([shape.head]) + self._losses([shape.head])
        # a tied head comes last, since its lookups' gradients do
        parts = [*parts, last] if shape.tied else [parts[0] + last, *parts[1:]]
        # read as floats, and kept in half precision for its gradient where that pays
        head_memory = self._head_memory() + self._read(shape.head.weights) * (1.5 if asked.half else 1.0)
        memory = max(head_memory, *(self._layer_memory(layer) for layer in shape.layers))
        memory += WORKING_BYTES + _FLOAT * asked.kept * shape.hidden * (4 if shape.tied else 2)
        return self._stage("backward through all layers", parts, memory, self._judges(), at_once=2)

    def _gradients(self, flops: float) -> Work:
        """Products that gradients at linears' inputs are."""
        return Work(half_flops=flops) if self.asked.half else Work(flops=flops)

    def _judges(self) -> float:
        return _FLOAT * sum(given.width**2 for given in self.shape.inputs) if self.asked.fit else 0.0

    def _head_memory(self) -> float:
        logits = self.asked.batch_size * self.asked.seq_len * self.shape.head.outputs
        return _FLOAT * _LOGIT_COPIES * logits

    @property
    def _largest(self) -> int:
        """Weights of the largest linear of a layer."""
        return max(spec.weights for spec in self.shape.card.tensors[:-1])

    def _layer_memory(self, layer: Sequence[Input]) -> float:
        """Bytes of what a layer's linears saw, and of its weights, graph or matrices, whichever takes more."""
        asked = self.asked
        read = sum(given.width * given.share for given in layer)
        written = sum(given.outputs * given.share for given in layer)
        slopes = sum(given.width * len(given.readers) * given.share for given in layer)
        trace = _FLOAT * asked.kept * (read + written)
        looked = _FLOAT * asked.judged * (read + written + slopes)
        weights = self._read(sum(given.weights for given in layer)) + self._batch()
        rough = 3 * _FLOAT * self._largest + self._read(self._largest)
        rounding = self._matrices(layer) + max(self._rounding_memory(given) for given in layer)
        return trace + max(weights, looked + max(rough, rounding))

    def _matrices(self, layer: Sequence[Input]) -> float:
        """Bytes of the matrices ``[in, in]`` that a layer keeps: judges, and moments with their orderings."""
        judges = sum(given.width**2 for given in layer)
        if not self.asked.fit:
            return 0.0
        wide = max(given.width for given in layer)
        if wide > _WIDE:  # alone, with one ordering
            return _FLOAT * (judges + 3.5 * wide**2)
        return _FLOAT * (6 * judges + 0.5 * wide**2)

    def _rounding_memory(self, given: Input) -> float:
        """Bytes while an input's readers are rounded: products, activations, rows in all widths."""
        asked, rows = self.asked, self._rows(given)
        products = asked.judged / asked.seq_len * rows * given.width
        activations = 5 * asked.judged * given.width * given.share
        return _FLOAT * (products + activations + 4.0 * rows * given.width * len(asked.formats))

    def _folding(self) -> ExpectedStage:
        shape = self.shape
        held = WORKING_BYTES + _FLOAT * _FEW_COPIES * self.asked.seq_len * shape.head.outputs + self._second
        written = _FLOAT * shape.parameters
        matrices = 2 * self._judges()
        work = Work(values=3 * shape.parameters, written=written + matrices, read=written + matrices)
        work += self._all_forward(self.asked.seq_len).times(2)
        return self._stage("folded model", [work], held, written)

    def _embedding(self) -> ExpectedStage:
        """The model as it is, and with its embedding in each format, one layer after the other."""
        asked, shape = self.asked, self.shape
        batch = asked.batch_size * asked.seq_len
        tokens = min(asked.judged, -(-asked.embedding // batch) * batch)
        passes = 1 + len(shape.card.embedding_formats(asked.formats))
        work = self._all_forward(tokens).times(passes)
        held = _FLOAT * (passes * tokens * shape.hidden + _FEW_COPIES * batch * shape.head.outputs)
        memory = WORKING_BYTES + held + self._batch() + self._read(shape.head.weights)
        return self._stage("embedding", [work], memory)

    def _measuring(self) -> ExpectedStage:
        tokens, shape = self.asked.judged, self.shape
        one = self._all_forward(tokens).times(2)
        batch = self.asked.batch_size * self.asked.seq_len
        # what a pass keeps to be replayed, and the head's rows as they are compared
        kept = batch * (shape.hidden * len(shape.layers) + _FEW_COPIES * shape.head.outputs) + shape.head.weights
        memory = WORKING_BYTES + _FLOAT * kept + self._batch() + self._read(shape.head.weights)
        made = Work(values=float(_STAND_INS * _STAND_IN_VALUES * sum(given.weights for given in shape.inputs)))
        return self._stage("measuring what plans hang on", [one.times(self.asked.measured_passes) + made], memory)

    @property
    def _second(self) -> float:
        """Bytes of the folded model beside the one that was given."""
        return 0.0 if self.asked.streamed else _FLOAT * self.shape.parameters

    def _all_forward(self, tokens: int) -> Work:
        return all_forward(self.shape, tokens, self.asked.seq_len, streamed=self.asked.streamed)

    def _forward(self, layer: Sequence[Input], tokens: int) -> Work:
        """A layer, once forwards."""
        return layer_forward(layer, tokens, self.asked.seq_len, self.shape.hidden, streamed=self.asked.streamed)

    @staticmethod
    def _moments(inputs: Sequence[Input], tokens: int) -> Work:
        """Second moments of inputs."""
        found = NOTHING
        for given in inputs if tokens else ():
            blocks = max(1, given.width // _GRAM_BLOCK)
            upper = (1 + 1 / blocks) / 2
            work = Work(
                flops=2.0 * tokens * given.share * given.width**2 * upper,
                values=tokens / 1024 * 3 * given.width**2,
                written=_FLOAT * given.width**2,
            )
            found += work
        return found

    def _views(self, inputs: Sequence[Input]) -> Work:
        """What tensors saw: judges, slopes at their inputs for losses and for folds, a first rounding."""
        asked = self.asked
        found = self._moments(inputs, asked.judged if asked.fit else 0)
        for given in inputs:
            tokens = asked.judged + (asked.witnesses if asked.fold else 0)
            slopes = 0.0 if given.layer is None else 2.0 * tokens * given.share * given.weights
            found += self._gradients(slopes)
            found += Work(values=12.0 * given.weights + 4 * asked.kept * (given.width + given.outputs))
        return found

    def _losses(self, inputs: Sequence[Input]) -> Work:
        """Folds and losses of the readers of some inputs."""
        found = NOTHING
        for given in inputs:
            kinds = self.shape.kinds(given.readers[0], self.asked.formats)
            found += self._rounded(given, [len(kind) for kind in kinds], fresh=True)
            if self.asked.fold:
                found += self._rounded(given, [_FOLD_FORMATS], fresh=False).times(2) + self._fitted(given)
        return found

    def _rows(self, given: Input) -> int:
        most = self.asked.head_drawn if given.layer is None else self.asked.drawn
        return sum(min(most, spec.out_features) for spec in given.readers)

    def _rounded(self, given: Input, kinds: Sequence[int], *, fresh: bool) -> Work:
        """Drawn rows in formats of some kinds, so many of each kind, and what they lose."""
        asked, rows, width = self.asked, self._rows(given), given.width
        found = Work(values=_ACTIVATION_VALUES * asked.judged * given.share * width)
        few = min(rows, _REFINED * len(given.readers)) if fresh and asked.fit else 0
        for count in kinds:
            work = rounding(width, rows - few, count, fits=bool(asked.fit), chosen=False, sweeps=_FOLD_SWEEPS)
            if few:
                work += rounding(width, few, count, fits=True, chosen=asked.chosen) + factored(width)
                work += Work(steps=_KIND_STEPS)
            found += work + self._gradients(2.0 * (rows + few) * float(width) ** 2 * count)
        return found + Work(flops=2.0 * asked.judged * given.share * rows * width)

    def _fitted(self, given: Input) -> Work:
        """Scales of a site."""
        rows = sum(min(_FIT_ROWS, spec.out_features) for spec in given.readers) + _FIT_ROWS
        return Work(values=_FIT_STEPS * _FIT_VALUES * rows * float(given.width), steps=_FIT_STEPS * _FIT_COLUMNS)
