"""Mixtures of experts with one linear per expert and matrix, as MNN has them, in place of stacked parameters.

Hugging Face keeps the matrices of all experts of a layer in one parameter ``[experts, out_features, in_features]``,
MNN gives each its own op. Splitting them when a model is loaded lets every later stage see ordinary linears; the
function stays the same to the bit, and `stacked_state` gives the parameters back for saving.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qplan.errors import InputError
from qplan.model.registry import Architecture, MixtureRules

_EXPERT_WEIGHT = re.compile(r"^(?P<experts>.*)\.(?P<number>\d+)\.(?P<matrix>\w+)\.weight$")


class RoutedLinear(nn.Linear):
    """A linear that sees only the tokens of every row that are routed to it, padded with tokens of zeros."""

    def __init__(self, weight: Tensor) -> None:
        """Take a weight ``[out_features, in_features]`` over without copying it."""
        with torch.device("meta"):
            super().__init__(weight.shape[1], weight.shape[0], bias=False)
        self.weight = nn.Parameter(weight, requires_grad=False)


class Expert(nn.Module):
    """One gated MLP."""

    def __init__(self, gate_up: Tensor, down: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
        """Make an expert from ``gate_up [2 * width, hidden]`` and ``down [hidden, width]``."""
        super().__init__()
        self.gate_up_proj = RoutedLinear(gate_up)
        self.down_proj = RoutedLinear(down)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[rows, tokens, hidden]`` to the same shape; tokens of zeros to zeros."""
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        output: Tensor = self.down_proj(self.activation(gate) * up)
        return output


class MixtureOfExperts(nn.Module):
    """A router and its experts: what ``Qwen3MoeSparseMoeBlock`` computes."""

    def __init__(self, gate: nn.Linear, experts: list[Expert], chosen: int, *, normalize: bool) -> None:
        """Make a mixture.

        Args:
            gate: the router, ``[experts, hidden]``.
            experts: in the order of the router's rows.
            chosen: experts per token.
            normalize: whether the chosen experts' probabilities are made to add up to 1.
        """
        super().__init__()
        self.gate = gate
        self.experts = nn.ModuleList(experts)
        self.chosen = chosen
        self.normalize = normalize

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map ``[rows, seq_len, hidden]`` to the same shape.

        Every expert runs once per pass, on its tokens packed to ``[rows, most tokens of a row, hidden]``, at least
        one token of zeros, so that hooks on linears see every expert, and which row a token belongs to.
        """
        logits = self.gate(hidden_states)
        shares, chosen = torch.topk(torch.softmax(logits, -1, dtype=torch.float), self.chosen, dim=-1)
        if self.normalize:
            shares = shares / shares.sum(-1, keepdim=True)
        shares = shares.to(logits.dtype)
        output = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self.experts):
            here = chosen == number
            routed = here.any(-1)
            counts = routed.sum(1, keepdim=True)
            size = max(1, int(counts.max()))
            places = torch.argsort(routed.to(torch.uint8), dim=1, descending=True, stable=True)[:, :size]
            used = (torch.arange(size, device=places.device) < counts).unsqueeze(-1)
            wide = places.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1])
            given = hidden_states.gather(1, wide) * used
            share = (shares * here).sum(-1).gather(1, places).unsqueeze(-1)
            output = output.scatter_add(1, wide, (expert(given) * (share * used)).to(output.dtype))
        return output


def split_experts(model: nn.Module, config: Any, architecture: Architecture) -> None:  # noqa: ANN401 - a HF config
    """Replace the mixtures of a Hugging Face model, in place; a model without any is left alone.

    Raises:
        InputError: a mixture that MNN's exporter translates wrongly.
    """
    rules = architecture.mixture
    if rules is None:
        return
    layers = model.get_submodule(architecture.layers)
    for index, layer in enumerate(layers.children()):
        block: Any = layer.get_submodule(rules.module)
        if not hasattr(block, "experts"):
            continue  # a dense layer
        if not config.norm_topk_prob:
            msg = (
                f"layer {index}: norm_topk_prob is false, and llmexport makes the chosen experts' weights add up to 1 "
                "all the same: the exported model would compute other logits (18 % off where it was measured)"
            )
            raise InputError(msg)
        setattr(layer, rules.module, _split(block))


def mixture_of(layer: nn.Module, rules: MixtureRules | None) -> MixtureOfExperts | None:
    """The split mixture of a decoder layer; None for a dense one."""
    block = None if rules is None else layer.get_submodule(rules.module)
    return block if isinstance(block, MixtureOfExperts) else None


def stacked_state(model: nn.Module) -> dict[str, Tensor] | None:
    """The state of a model under the names and in the shapes of Hugging Face; None if nothing was split."""
    if not any(isinstance(module, MixtureOfExperts) for module in model.modules()):
        return None
    experts: dict[str, dict[int, Tensor]] = {}
    state: dict[str, Tensor] = {}
    routed = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, RoutedLinear)}
    for name, value in model.state_dict().items():
        match = _EXPERT_WEIGHT.match(name) if name in routed else None
        if match is None:
            state[name] = value
        else:
            experts.setdefault(f"{match['experts']}.{match['matrix']}", {})[int(match["number"])] = value
    return state | {name: _stacked(parts) for name, parts in experts.items()}


def _stacked(parts: Mapping[int, Tensor]) -> Tensor:
    return torch.stack([parts[number] for number in sorted(parts)])


def _split(block: Any) -> MixtureOfExperts:  # noqa: ANN401 - a Hugging Face module
    router, stacked = block.gate, block.experts
    gate = nn.Linear(router.weight.shape[1], router.weight.shape[0], bias=False, device="meta")
    gate.weight = nn.Parameter(router.weight.data, requires_grad=False)
    experts = [
        Expert(gate_up, down, stacked.act_fn)
        for gate_up, down in zip(stacked.gate_up_proj.data, stacked.down_proj.data, strict=True)
    ]
    return MixtureOfExperts(gate, experts, router.top_k, normalize=router.norm_topk_prob)
