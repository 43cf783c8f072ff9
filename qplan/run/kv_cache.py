"""The KV cache of a plan, and what storing it otherwise than as floats was measured to lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qplan.artifact import MAKE_AGAIN, is_there, read_json, write_json
from qplan.cost.kv_cache import KvMode
from qplan.errors import DamagedArtifactError
from qplan.run.damage import tell_damaged
from qplan.run.decode import decode_artifact

KIND, SCHEMA = "qplan-kv-cache", 1


@dataclass(frozen=True, kw_only=True)
class KvLoss:
    """KL of a model whose KV cache is not of floats from the model in FP32, on one long sequence on the engine."""

    prefill_nats: float
    """Mean over the tokens of a prompt that takes one pass."""
    decode_nats: float
    """Mean over the tokens after it, one by one."""
    prompt_tokens: int
    decode_tokens: int

    @property
    def nats(self) -> float:
        """The larger of the two: what counts when a mode is chosen."""
        return max(self.prefill_nats, self.decode_nats)


@dataclass(frozen=True, kw_only=True)
class PlannedCache:
    """How a plan stores keys and values, and what that takes."""

    mode: KvMode
    tokens: int
    """Tokens that it is to hold."""
    bytes: int
    """RAM with so many tokens."""
    float_bytes: int
    """The same as floats."""
    loss: KvLoss | None = None
    """With weights in fp16; None where it was not measured."""

    @property
    def nats(self) -> float:
        """What it loses; 0 where that was not measured."""
        return 0.0 if self.loss is None else self.loss.nats


def loss_once(path: Path, inputs: Mapping[str, str], measure: Callable[[], KvLoss]) -> KvLoss:
    """Read a mode's loss, or measure and write it if the file has none of these inputs.

    Args:
        path: the artifact.
        inputs: what the loss depends on: model, text, engine, lengths.
        measure: measures it.
    """
    if is_there(path):
        try:
            document = read_json(path, KIND, SCHEMA, remedy=MAKE_AGAIN)
            if document["inputs"] == dict(inputs):
                return decode_artifact(KvLoss, document["loss"], path, MAKE_AGAIN, "loss")
        except DamagedArtifactError as error:
            tell_damaged(error)
    found = measure()
    write_json(path, KIND, SCHEMA, dict(inputs), {"loss": asdict(found)})
    return found
