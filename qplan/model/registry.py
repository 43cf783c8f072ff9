"""Architectures that qplan plans for: where their linears are, and what MNN's exporter calls them.

Only those whose fp16 export matches Hugging Face's FP32 logits (see the README) and whose every linear has its own op.
MNN names come from the exporter's attribute names (``llmexport/utils/model_mapper.py`` and ``unload_param`` of
``llmexport.py``): ``/layers.{i}/{op}/Linear`` and ``/lm/lm_head/Linear``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from qplan.errors import InputError
from qplan.tensors import Role

HEAD_OP = "/lm/lm_head/Linear"

Part = Literal["query", "key", "value"]

FoldKind = Literal["norm", "product", "value"]
"""What stands between source and readers: nothing; a product with another activation; attention over heads."""


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
    expert: int | None = None
    """Number of the expert that the op belongs to: an expert's ops are in a graph of their own."""

    def op_name(self, layer: int) -> str:
        """Name of the op in the MNN graph."""
        if self.expert is not None:
            return f"/expert/{layer}_{self.expert}/{self.op}"
        return f"/layers.{layer}/{self.op}/Linear"

    @property
    def tensor(self) -> str:
        """Path of the tensor inside the layer: the module's, or where a part would be if it were not fused."""
        return self.module if self.part is None else self.op.replace("/", ".")


@dataclass(frozen=True)
class MixtureRules:
    """What stands in place of a dense MLP in layers with experts, as `qplan.model.mixture` splits them."""

    module: str
    """Path inside the decoder layer; dense layers have their MLP there."""
    router: LinearRule
    expert: tuple[LinearRule, ...]
    """Linears of one expert, in order of execution; paths and ops are relative to the expert."""

    def linears(self, experts: int) -> Iterator[LinearRule]:
        """Every linear of a layer with that many experts, in order of execution."""
        yield self.router
        for number in range(experts):
            for rule in self.expert:
                yield replace(rule, module=f"{self.module}.experts.{number}.{rule.module}", expert=number)


@dataclass(frozen=True)
class FoldRule:
    """A place in a decoder layer where a channel's scale can move without changing the function."""

    kind: FoldKind
    source: str
    """Path of the norm, or the tensor, whose channels are divided."""
    readers: tuple[str, ...]
    """Tensors whose columns are multiplied: all those that read these channels."""
    half: bool = False
    """Whether the source is the second half of the tensor's rows: the exporter fuses gate and up."""
    parallel: bool | None = None
    """Only for this value of ``use_parallel_residual``, with which one norm feeds attention and MLP; None for any."""


@dataclass(frozen=True)
class Architecture:
    """Paths inside a Hugging Face causal LM."""

    linears: tuple[LinearRule, ...]
    """Every linear of a dense decoder layer, in order of execution."""
    folds: tuple[FoldRule, ...]
    """Where scales can move inside a decoder layer."""
    norm_offset: float = 0.0
    """What a norm adds to its weights: Gemma multiplies by ``1 + weight``."""
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    embedding: str = "model.embed_tokens"
    head: str = "lm_head"
    mixture: MixtureRules | None = None
    """Rules for layers with experts; None if the architecture has none."""

    def linears_of(self, experts: int | None) -> tuple[LinearRule, ...]:
        """Every linear of a decoder layer with that many experts, None for a dense layer, in order of execution."""
        if experts is None or self.mixture is None:
            return self.linears
        around = tuple(rule for rule in self.linears if not rule.module.startswith(f"{self.mixture.module}."))
        return (*around, *self.mixture.linears(experts))


def _rules(role: Role, block: str, *names: str) -> tuple[LinearRule, ...]:
    return tuple(LinearRule(f"{block}.{name}", f"{block}/{name}", role) for name in names)


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_VALUE = FoldRule("value", "self_attn.v_proj", ("self_attn.o_proj",))
_UP = FoldRule("product", "mlp.up_proj", ("mlp.down_proj",))
_INPUT_NORM = FoldRule("norm", "input_layernorm", _QKV)
_MLP_NORM = FoldRule("norm", "post_attention_layernorm", _GATE_UP)


_ATTENTION = _rules(Role.ATTENTION, "self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
_GATED_MLP = _rules(Role.MLP, "mlp", "gate_proj", "up_proj", "down_proj")
_LLAMA = Architecture(_ATTENTION + _GATED_MLP, (_INPUT_NORM, _VALUE, _MLP_NORM, _UP))
_QWEN3_MOE = replace(
    _LLAMA,
    mixture=MixtureRules(
        "mlp",
        LinearRule("mlp.gate", "mlp/gate", Role.ROUTER),
        (
            LinearRule("gate_up_proj", "gate_up_proj_linear", Role.EXPERT),
            LinearRule("down_proj", "down_proj_linear", Role.EXPERT),
        ),
    ),
)
_GEMMA = replace(_LLAMA, norm_offset=1.0)
# the norms after attention and MLP scale outputs, not inputs
_GEMMA2 = replace(_GEMMA, folds=(_INPUT_NORM, _VALUE, FoldRule("norm", "pre_feedforward_layernorm", _GATE_UP), _UP))
_STABLELM = replace(
    _LLAMA,
    folds=(
        replace(_INPUT_NORM, parallel=False),
        replace(_INPUT_NORM, readers=_QKV + _GATE_UP, parallel=True),
        _VALUE,
        replace(_MLP_NORM, parallel=False),
        _UP,
    ),
)
_PHI = Architecture(
    (
        *_rules(Role.ATTENTION, "self_attn", "q_proj", "k_proj", "v_proj"),
        LinearRule("self_attn.dense", "self_attn/o_proj", Role.ATTENTION),
        *_rules(Role.MLP, "mlp", "fc1", "fc2"),
    ),
    # GELU stands between fc1 and fc2
    (
        replace(_INPUT_NORM, readers=(*_QKV, "mlp.fc1")),
        replace(_VALUE, readers=("self_attn.dense",)),
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
    ),
    (
        _INPUT_NORM,
        _VALUE,
        replace(_MLP_NORM, readers=("mlp.gate_up_proj",)),
        replace(_UP, source="mlp.gate_up_proj", half=True),
    ),
)

ARCHITECTURES: dict[str, Architecture] = {
    "ernie4_5": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "hunyuan_v1_dense": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi": _PHI,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _QWEN3_MOE,
    "stablelm": _STABLELM,
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
            "(others export to MNN wrongly or not at all, or have no entry in qplan/model/registry.py yet)"
        )
        raise InputError(msg)
    return ARCHITECTURES[model_type]
