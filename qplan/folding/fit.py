"""How strongly to fold: scales that minimize the expected loss of int8 activations and of the weights' rounding.

Both are Fisher estimates in nats per token, of errors taken as uniform and independent. With inputs ``x``, scales
``s``, slopes ``u`` of the log-likelihood at the input and ``g`` at the output:

- activations: the step of token ``t`` is ``max_i |x_ti / s_i| / 127``, and column ``i`` enlarges its error by ``s_i``:
  ``mean_t(u_t^2 step_t^2) sum_i(s_i^2 u_i^2) / 24``, the square slope taken as a token's factor times a column's;
- weights: the step of block ``b`` of row ``o`` is the range of ``w_oi s_i`` over ``2^bits - 1``, and its error meets
  ``x_i / s_i``: ``sum_o g_o^2 sum_b step_ob^2 sum_{i in b} E[x_i^2] / s_i^2 / 24``; for an embedding the same again,
  with the slopes at its lookups.

Whatever makes the channels, rows or a norm, loses nothing: a row's grid scales with it, norms are FP32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qplan.folding.evidence import Evidence
from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.settings import Memory

Plan = Mapping[str, QuantFormat]
"""A format for every tensor."""

_STEPS, _RATE = 60, 0.08
"""Of Adam on log s; 200 steps at 0.04 come to a thousandth less."""
_TOKENS, _ROWS = 512, 512
"""Drawn for a step: inputs, and rows of each reader in proportion to their slopes."""
_MANY_ROWS = 8192
"""More rows than this are drawn even where nothing else is: a vocabulary."""
_SMALLEST = 1e-9
"""Square of a channel that is never used."""
_REACH = math.log(64)
"""Scales stay within this of their mean: fp16 block scales have 30 binades."""


def root_mean_square_scales(evidence: Evidence, alpha: float) -> Tensor:
    """Root mean squares of the channels to the power ``alpha``: SmoothQuant's family without its weights."""
    energy = _by_channel(evidence, evidence.inputs.float().square()).mean(0)
    return _centred(energy.clamp(min=_SMALLEST).log() * alpha / 2)


def smooth_scales(evidence: Evidence, loaded: LoadedModel, alpha: float) -> Tensor:
    """SmoothQuant, equation 4: ``max|x_i|^alpha / max|w_i|^(1 - alpha)``, for dividing inputs."""
    largest = _by_channel(evidence, evidence.inputs.float().abs()).amax(0).clamp(min=_SMALLEST)
    columns = torch.stack([loaded.weight(name).abs().amax(0) for name in evidence.site.readers]).amax(0)
    weights = _by_channel(evidence, columns.unsqueeze(0)).amax(0).clamp(min=_SMALLEST)
    return _centred(alpha * largest.log() - (1 - alpha) * weights.log())


def fit_scales(
    evidence: Evidence,
    loaded: LoadedModel,
    plans: Sequence[Plan],
    totals: Tensor,
    memories: Sequence[Memory],
    *,
    seed: int = 0,
) -> Tensor:
    """Scales ``[channels]`` of one site that minimize its loss over the model's, summed over memories and plans.

    Args:
        evidence: of the site.
        loaded: the model.
        plans: what the model is expected to be stored with.
        totals: ``[memories, plans]``, expected loss of the whole model before folding: what makes them comparable.
        memories: settings that count; with ``normal`` activations stay floats.
        seed: of the tokens and rows that are drawn.
    """
    log_scale = root_mean_square_scales(evidence, 0.5).log().requires_grad_()
    optimizer = torch.optim.Adam([log_scale], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = expected_loss(evidence, loaded, log_scale.exp(), plans, memories, generator=generator)
            (loss / totals).sum().log().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            log_scale.copy_((log_scale - log_scale.mean()).clamp(-_REACH, _REACH))
    return log_scale.detach().exp()


def expected_loss(
    evidence: Evidence,
    loaded: LoadedModel,
    scale: Tensor,
    plans: Sequence[Plan],
    memories: Sequence[Memory],
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loss ``[memories, plans]`` in nats per token that scales ``[channels]`` of a site lead to.

    Args:
        evidence: of the site.
        loaded: the model.
        scale: may require a gradient.
        plans: formats of the readers.
        memories: settings that count; with ``normal`` activations stay floats.
        generator: draws some tokens and rows; None takes all tokens, and all rows that count of a large vocabulary.
    """
    columns = evidence.site.expand(scale)
    inputs, along = evidence.inputs, evidence.tokens
    if generator is not None:
        drawn = torch.randint(len(inputs), (_TOKENS,), generator=generator).to(inputs.device)
        inputs, along = inputs[drawn], along[drawn]
    seen = inputs.float()
    steps = (seen.abs() / columns).amax(1) / 127
    rounded = (along * steps.square()).mean() * (columns.square() * evidence.columns).sum() / 24
    int8 = [[memory == "low" and not plan[evidence.site.name].is_float for plan in plans] for memory in memories]
    loss = rounded * torch.tensor(int8, device=rounded.device)
    energy = seen.square().mean(0) / columns.square()
    uses = [(reader, slopes, energy) for reader, slopes in evidence.rows.items()]
    if evidence.lookups is not None and evidence.looked_up is not None:
        uses.append((evidence.site.name, evidence.looked_up, evidence.lookups / columns.square()))
    for name, importance, met in uses:
        rows, factor = _drawn(importance, generator)
        scaled = loaded.weight(name)[rows] * columns
        loss = loss + torch.stack([_rounding(scaled, plan[name], factor, met) for plan in plans])
    return loss


def _rounding(weight: Tensor, fmt: QuantFormat, rows: Tensor, columns: Tensor) -> Tensor:
    """What rounding ``weight [rows, in_features]`` loses, given what each row counts and what columns meet."""
    if fmt.is_float:
        return torch.zeros((), device=weight.device)
    size = fmt.resolve(weight.shape[1]).block_size(weight.shape[1])
    blocks = weight.reshape(len(weight), -1, size)
    if fmt.symmetric:
        steps = blocks.abs().amax(2) / (2 ** (fmt.bits - 1) - 1)
    else:
        steps = (blocks.amax(2) - blocks.amin(2)) / (2**fmt.bits - 1)
    loss: Tensor = ((rows @ steps.square()) * columns.reshape(-1, size).sum(1)).sum() / 24
    return loss


def _drawn(importance: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Rows, and what each counts: all with their importance, or some in proportion to it."""
    count = _MANY_ROWS if generator is None else _ROWS
    if len(importance) <= count:
        return torch.arange(len(importance), device=importance.device), importance
    cumulative = importance.to(torch.float64).cumsum(0)
    if generator is None:
        where = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    else:
        where = torch.rand(count, generator=generator, dtype=torch.float64)
    rows = torch.searchsorted(cumulative, where.to(cumulative) * cumulative[-1]).clamp(max=len(importance) - 1)
    return rows, (cumulative[-1] / count).to(importance).expand(count)


def _by_channel(evidence: Evidence, values: Tensor) -> Tensor:
    """``[rows, in_features]`` to ``[rows * sharing columns, channels]``."""
    shared, heads = evidence.site.repeats
    channels = evidence.site.channels
    return values.reshape(-1, heads, shared, channels // heads).transpose(1, 2).reshape(-1, channels)


def _centred(log_scale: Tensor) -> Tensor:
    return (log_scale - log_scale.mean()).clamp(-_REACH, _REACH).exp()
