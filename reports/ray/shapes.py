"""What rounding and gathering on many machines would take, from the shapes of large models alone."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT, HALF = 4, 2
COPIES, MATRICES = 8, 10
"""As `qplan.rounding.round_tasks` counts a worker's memory."""

FIT_TOKENS = 32768
"""Tokens that rounding is fitted to by default."""


@dataclass(frozen=True)
class Matrices:
    """Some equal matrices of a model."""

    name: str
    out: int
    width: int
    count: int
    inputs: int
    """How many different inputs they have: q, k and v share one."""

    @property
    def weights(self) -> int:
        """Their number of weights."""
        return self.out * self.width * self.count


@dataclass(frozen=True)
class Shape:
    """A model."""

    name: str
    hidden: int
    layers: int
    tensors: tuple[Matrices, ...]

    @property
    def weights(self) -> int:
        """Weights in matrices, and those of an untied embedding."""
        return sum(kind.weights for kind in self.tensors) + self.tensors[-1].weights

    @property
    def tasks(self) -> int:
        """Rounding tasks: one per tensor."""
        return sum(kind.count for kind in self.tensors)

    @property
    def read_bytes(self) -> int:
        """What tasks read of shared storage: their weights in bf16, and both moments of their inputs each."""
        return sum(kind.count * (HALF * kind.out * kind.width + 2 * FLOAT * kind.width**2) for kind in self.tensors)

    @property
    def written_bytes(self) -> int:
        """What they write: a byte per weight, scale and zero point per block of 64."""
        return sum(kind.weights + 2 * FLOAT * kind.weights // 64 for kind in self.tensors)

    @property
    def moment_bytes(self) -> int:
        """Moments of one set of tokens on disk."""
        return sum(kind.inputs * FLOAT * kind.width**2 for kind in self.tensors)

    @property
    def between_bytes(self) -> int:
        """Hidden states between all layers while moments are gathered, in the object stores of all nodes together."""
        return self.layers * FIT_TOKENS * self.hidden * FLOAT

    @property
    def task_bytes(self) -> int:
        """RAM of a rounding worker without the model: its largest tensor and that tensor's moments."""
        return max(FLOAT * (COPIES * kind.out * kind.width + MATRICES * kind.width**2) for kind in self.tensors)

    @property
    def rounding_flops(self) -> float:
        """GPTQ of all tensors in one format, with a factored H per task."""
        return float(sum(kind.count * (2 * kind.out * kind.width**2 + 2 * kind.width**3) for kind in self.tensors))

    @property
    def longest_flops(self) -> float:
        """Of one task: no number of machines makes the stage shorter."""
        return float(max(2 * kind.out * kind.width**2 + 2 * kind.width**3 for kind in self.tensors))


def llama(name: str, *, hidden: int, inner: int, values: int, layers: int, vocabulary: int) -> Shape:
    """A dense model of the Llama family."""
    return Shape(
        name,
        hidden,
        layers,
        (
            Matrices("q, o", hidden, hidden, 2 * layers, 2 * layers),
            Matrices("k, v", values, hidden, 2 * layers, 0),
            Matrices("gate, up", inner, hidden, 2 * layers, layers),
            Matrices("down", hidden, inner, layers, layers),
            Matrices("head", vocabulary, hidden, 1, 1),
        ),
    )


SHAPES = (
    llama("Llama-3.1-70B", hidden=8192, inner=28672, values=1024, layers=80, vocabulary=128256),
    Shape(
        "DeepSeek-V3, 671B",
        7168,
        61,
        (
            Matrices("query down", 1536, 7168, 61, 61),
            Matrices("query up", 24576, 1536, 61, 61),
            Matrices("key and value down", 576, 7168, 61, 0),
            Matrices("key and value up", 32768, 512, 61, 61),
            Matrices("attention's output", 7168, 16384, 61, 61),
            Matrices("gate, up of 3 dense layers", 18432, 7168, 6, 3),
            Matrices("down of these", 7168, 18432, 3, 3),
            Matrices("gate, up of 257 experts", 2048, 7168, 58 * 257 * 2, 58 * 257),
            Matrices("down of these", 7168, 2048, 58 * 257, 58 * 257),
            Matrices("router", 256, 7168, 58, 0),
            Matrices("head", 129280, 7168, 1, 1),
        ),
    ),
)
"""qplan has no architecture with DeepSeek's attention: its row is about the size alone."""
