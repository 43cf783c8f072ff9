"""What exporting a graph, building models and running them on the engine take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qplan.cost.file_bytes import estimate_fixed
from qplan.cost.forward import COMPARED_VALUES, FLOAT_BYTES, REFERENCE_VALUES
from qplan.cost.shape import Shape
from qplan.cost.work import REFERENCE, Work
from qplan.formats import FP16
from qplan.settings import Memory

# processor seconds of MNN 3.6.1 and llmexport 0.0.5, on the embedded model, SmolLM2-135M and Qwen2.5-0.5B
_EXPORT_S, _EXPORT_OP_S = 4.5, 0.037
"""Seconds of an export: starting Python with torch and llmexport, and for each linear of the graph."""
_EXPORT_VALUES = 20
"""Numbers that an export reads and writes per weight of the embedding."""
_CONVERTER_S, _CONVERTER_OP_S = 0.3, 0.001
"""Seconds that patching the graph and converting it take, with starting the converter, and for each linear."""
_HASHED = 1.5
"""Bytes that are read, for each byte of a built model: it is hashed."""
_START_S = 0.25
"""Seconds until the engine's process is there."""
_LOADED_VALUES = {"low": 1.0, "normal": 3.0}
"""Numbers read and written per weight that the engine loads."""
_PREFILL, _INTEGER_PREFILL = 1.0, 1.2
"""Time of the engine's products of many tokens with float and with int8 activations, in that of as many operations in
torch on one processor."""
_STEP, _INTEGER_STEP = 10.0, 2.1
"""The same of a token by itself: it waits for the weights, which are float32 or integers in memory."""
_STEP_S = 4e-6
"""Seconds that each linear takes of a token by itself whatever its size."""
_TOKENIZED_S = 0.2
"""Seconds in which texts are tokenized by engine and Hugging Face."""
_FLOAT_STEPS = 32
"""Tokens of a sequence that floats are run on by themselves: `qplan.verify.measure`."""
_ROUNDS, _LEAST_ROUNDS, _LONG_S = 9, 3, 30.0
"""Times that models take turns at most and at least, and seconds after which they do no more: `qplan.verify.turns`."""
_LEAST_REPEATS = 2
"""Of timing a model by itself."""
_WARM_UP_STEPS = 4
_JSON_BYTES = 8
"""Bytes of the graph as JSON for each byte of the graph."""
_COPIES_AT_LOAD = 1.4
"""Of `qplan.verify.engine_memory`."""
_FLOAT_BITS = 16
_INTEGER_BYTES = 1.2
"""Bytes of an integer in memory, with its share of a scale and a zero point: `qplan.cost.targets`."""
_BASE_BYTES = 80e6
"""The engine without a model."""


@dataclass(frozen=True, kw_only=True)
class EngineCost:
    """Work and memory of MNN's exporter, converter and engine, for one model."""

    shape: Shape
    bits: float
    """Mean bits of the plan's weights."""
    uniform: tuple[int, ...]
    """Bits of the uniform models that are measured."""
    memories: tuple[Memory, ...]
    """Settings that built models are measured under."""
    seq_len: int
    gate_tokens: int
    """Tokens whose logits are compared one by one."""
    decode_rows: int
    """Sequences that also go through token by token."""
    prompt_tokens: int
    decode_tokens: int
    repeats: int
    """Of timing prefill and decode, at most."""
    enough_s: float
    """Seconds of timing after which no further repeat is begun."""
    threads: int = 1
    most_bytes: float = math.inf
    """Most memory of the engine's process: what takes more is left out, see `qplan.verify.engine_memory`."""

    @property
    def _ops(self) -> int:
        return len(self.shape.card.tensors)

    @property
    def _weights(self) -> float:
        return float(sum(given.weights for given in self.shape.inputs))

    @property
    def _met(self) -> float:
        """Weights that a token meets."""
        return sum(given.weights * given.share for given in self.shape.inputs)

    @property
    def graph_bytes(self) -> int:
        """Bytes of an exported graph, whose matrices are holes."""
        return self._others + _JSON_BYTES * estimate_fixed(self.shape.card).graph

    def file_bytes(self, bits: float) -> float:
        """Bytes of a built model."""
        return self._weights * bits / 8 + self._others

    @property
    def _others(self) -> int:
        """Bytes of the files besides the linears, an embedding at 16 bits included."""
        card = self.shape.card
        own = 0 if card.embedding is None else card.embedding.bytes_in(FP16)
        return estimate_fixed(card).total + own

    def exported(self) -> Work:
        """An export of the graph."""
        embedding = self.shape.head.weights
        return Work(seconds_anywhere=_EXPORT_S + _EXPORT_OP_S * self._ops, values=float(_EXPORT_VALUES * embedding))

    def built(self, bits: float) -> Work:
        """A model written and hashed, once its integers are there."""
        written = self.file_bytes(bits)
        converter = _CONVERTER_S + _CONVERTER_OP_S * self._ops
        return Work(written=written, read=_HASHED * written, seconds_anywhere=converter)

    def _loaded(self, memory: Memory, bits: float) -> Work:
        work = Work(seconds_anywhere=_START_S, values=_LOADED_VALUES[memory] * self._weights)
        return work + Work(read=self.file_bytes(bits) / 4)

    def _prefill(self, memory: Memory, bits: float, tokens: float) -> Work:
        scores = 4.0 * self.seq_len * self.shape.hidden * len(self.shape.layers)
        slow = _INTEGER_PREFILL if memory == "low" and bits < _FLOAT_BITS else _PREFILL
        return Work(engine_flops=slow * tokens * (2.0 * self._met + scores))

    def _steps(self, bits: float, tokens: float) -> Work:
        """Tokens by themselves, under memory low."""
        slow = _INTEGER_STEP if bits < _FLOAT_BITS else _STEP
        work = Work(engine_flops=slow * tokens * 2.0 * self._met)
        return work + Work(seconds_anywhere=_STEP_S * self._ops * tokens)

    def _timed(self, bits: float, least: int, enough_s: float) -> Work:
        """Speeds of prefill and decode under memory low, after a warm-up."""
        prefill = self._prefill("low", bits, self.prompt_tokens)
        one = prefill + self._steps(bits, self.decode_tokens)
        enough = math.ceil(enough_s / one.seconds(REFERENCE))
        return prefill + self._steps(bits, _WARM_UP_STEPS) + one.times(min(self.repeats, max(least, enough)))

    def _compared(self, tokens: float) -> Work:
        return Work(values=float(REFERENCE_VALUES + COMPARED_VALUES) * tokens * self.shape.head.outputs)

    def exact(self, bits: float) -> Work:
        """Logits of a few tokens with float activations, of as many layers as fit, and the texts of the tokenizer."""
        work = self._loaded("normal", bits) + self._prefill("normal", bits, self.gate_tokens)
        share = min(1.0, max(0.0, self.most_bytes) / self.memory(bits, "normal"))
        return work.times(share) + Work(seconds_anywhere=_TOKENIZED_S)

    def passed(self, bits: float, tokens: int, steps: int) -> Work:
        """Some tokens in one pass and some by themselves, under memory low, in a model that is loaded."""
        return self._prefill("low", bits, tokens) + self._steps(bits, steps)

    def in_parts(self, memory: Memory, bits: float, tokens: int, steps: int) -> Work:
        """One sequence: some of its tokens in one pass, the last ones by themselves, all of them compared."""
        work = self._loaded(memory, bits) + self._prefill(memory, bits, tokens) + self._steps(bits, steps)
        return work + self._compared(tokens + steps)

    def measured(self, bits: float, tokens: int, *, beside: bool = False) -> Work:
        """A built model under all settings; ``beside`` with the other scales of int8 activations too, in turns."""
        work, runs = Work(), self.runs(bits)
        floats = bits >= _FLOAT_BITS
        run_once = runs[:1] if floats else runs  # floats are computed alike under all settings
        for memory in (*run_once, *(("low",) if beside and "low" in runs else ())):
            work += self._loaded(memory, bits) + self._prefill(memory, bits, tokens) + self._compared(tokens)
            if memory == "low":
                steps = self.decode_rows * (min(self.seq_len, _FLOAT_STEPS) if floats else self.seq_len)
                work += self._steps(bits, steps) + self._compared(steps)
        if "low" not in runs:
            return work
        return work + self._timed(bits, _LEAST_REPEATS, self.enough_s) if floats else work

    def turns(self, bits: Sequence[float]) -> Work:
        """Models of so many bits that take turns: loaded once, and timed in rounds."""
        runs = [one for one in bits if "low" in self.runs(one)]
        loaded, turn = Work(), Work()
        for one in runs:
            loaded += self._loaded("low", one) + self._timed_once(one)
            turn += self._timed_once(one)
        if not runs:
            return loaded
        return loaded + turn.times(max(_LEAST_ROUNDS, min(_ROUNDS, math.ceil(_LONG_S / turn.seconds(REFERENCE)))))

    def _timed_once(self, bits: float) -> Work:
        return self._prefill("low", bits, self.prompt_tokens) + self._steps(bits, self.decode_tokens)

    def memory(self, bits: float, memory: Memory) -> float:
        """Bytes of the engine's process with a model."""
        floats = memory == "normal" or bits >= _FLOAT_BITS
        stored = self._weights * (FLOAT_BYTES if floats else _INTEGER_BYTES)
        largest = max(spec.weights for spec in self.shape.card.tensors)
        loading = largest * (FLOAT_BYTES if floats else _COPIES_AT_LOAD)
        logits = 3.0 * FLOAT_BYTES * self.seq_len * self.shape.head.outputs
        return _BASE_BYTES + stored + max(loading, logits)

    def runs(self, bits: float) -> tuple[Memory, ...]:
        """Settings under which a model is run."""
        return tuple(memory for memory in self.memories if self.memory(bits, memory) <= self.most_bytes)

    def peak(self, bits: float) -> float:
        """Bytes of the engine's process at most, whatever is run of a model."""
        return min(self.most_bytes, max(self.memory(bits, memory) for memory in self.memories))
