"""Architectures that qplan plans for: where their linears are, and what MNN's exporter calls them.

Only those whose fp16 export matches Hugging Face's FP32 logits (see the README) and whose every linear has its own op.
MNN names come from the exporter's attribute names (``llmexport/utils/model_mapper.py`` and ``unload_param`` of
``llmexport.py``): ``/layers.{i}/{op}/Linear`` and ``/lm/lm_head/Linear``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qplan.errors import InputError
from qplan.tensors import Role

HEAD_OP = "/lm/lm_head/Linear"

Part = Literal["query", "key", "value"]


@dataclass(frozen=True)
class LinearRule:
    """One MNN op of a decoder layer and the Hugging Face module that holds its weights."""

    module: str
    """Path inside the decoder layer, e.g. ``self_attn.q_proj``."""
    op: str
    """Path inside the layer's ops, e.g. ``self_attn/q_proj``."""
    role: Role
    part: Part | None = None
    """Which rows of the module: the exporter splits a fused query-key-value matrix into three ops."""

    def op_name(self, layer: int) -> str:
        """Name of the op in the MNN graph."""
        return f"/layers.{layer}/{self.op}/Linear"

    @property
    def tensor(self) -> str:
        """Path of the tensor inside the layer: the module's, or where a part would be if it were not fused."""
        return self.module if self.part is None else self.op.replace("/", ".")


@dataclass(frozen=True)
class Architecture:
    """Paths inside a Hugging Face causal LM."""

    linears: tuple[LinearRule, ...]
    """Every linear of a decoder layer, in order of execution."""
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    embedding: str = "model.embed_tokens"
    head: str = "lm_head"


def _rules(role: Role, block: str, *names: str) -> tuple[LinearRule, ...]:
    return tuple(LinearRule(f"{block}.{name}", f"{block}/{name}", role) for name in names)


_ATTENTION = _rules(Role.ATTENTION, "self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
_GATED_MLP = _rules(Role.MLP, "mlp", "gate_proj", "up_proj", "down_proj")
_LLAMA = Architecture(_ATTENTION + _GATED_MLP)
_PHI = Architecture(
    (
        *_rules(Role.ATTENTION, "self_attn", "q_proj", "k_proj", "v_proj"),
        LinearRule("self_attn.dense", "self_attn/o_proj", Role.ATTENTION),
        *_rules(Role.MLP, "mlp", "fc1", "fc2"),
    ),
    final_norm="model.final_layernorm",
)
_PHI3 = Architecture(
    (
        LinearRule("self_attn.qkv_proj", "self_attn/q_proj", Role.ATTENTION, "query"),
        LinearRule("self_attn.qkv_proj", "self_attn/k_proj", Role.ATTENTION, "key"),
        LinearRule("self_attn.qkv_proj", "self_attn/v_proj", Role.ATTENTION, "value"),
        *_rules(Role.ATTENTION, "self_attn", "o_proj"),
        *_rules(Role.MLP, "mlp", "gate_up_proj", "down_proj"),
    )
)

ARCHITECTURES: dict[str, Architecture] = {
    "ernie4_5": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi": _PHI,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "stablelm": _LLAMA,
}
"""By Hugging Face ``model_type``."""


def architecture_of(model_type: str) -> Architecture:
    """Look an architecture up.

    Raises:
        InputError: qplan does not know it; the message lists those it knows.
    """
    if model_type not in ARCHITECTURES:
        msg = (
            f"model type {model_type!r} is not supported; supported are {', '.join(sorted(ARCHITECTURES))} "
            "(others export to MNN wrongly or not at all, or wait for an entry in qplan/model/registry.py)"
        )
        raise InputError(msg)
    return ARCHITECTURES[model_type]
