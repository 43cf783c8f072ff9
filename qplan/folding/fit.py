"""How strongly to fold: scales that minimize the expected loss from int8 activations and from rounding weights.

Both are Fisher estimates in nats per token, which assume uniform and independent errors. With inputs ``x``, scales
``s``, slopes ``u`` of the log-likelihood at the input and ``g`` at the output:

- activations: the step of token ``t`` is ``max_i |x_ti / s_i| / 127``, and column ``i`` enlarges its error by ``s_i``:
  ``mean_t(u_t^2 step_t^2) sum_i(s_i^2 u_i^2) / 24``, with the square slope approximated as a factor per token times one
  per column;
- weights: the step of block ``b`` of row ``o`` is the range of ``w_oi s_i`` over ``2^bits - 1``, and its error is
  multiplied by ``x_i / s_i``: ``sum_o g_o^2 sum_b step_ob^2 sum_{i in b} E[x_i^2] / s_i^2 / 24``. A tied embedding adds
  the same term with the slopes at its lookups.

The source of the channels loses nothing: the grid of a row scales with the row, and norms are FP32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qplan.folding.evidence import Evidence
from qplan.folding.fold import FoldSite
from qplan.formats import Formats, QuantFormat
from qplan.model.load import LoadedModel
from qplan.settings import Memory

_STEPS, _RATE = 60, 0.08
"""Steps and learning rate of Adam on log s; 200 steps at 0.04 lower the loss by another thousandth. With 40 steps at
0.12, folding left 0.76 of uniform int8's loss on the embedded model, where these leave 0.69."""
_TOKENS, _ROWS = 512, 512
"""Samples per step: tokens, and rows of each reader in proportion to their slopes. With half as many of either, folding
the embedded model's head lost what it gains, and a plan from few tokens a tenth."""
_MANY_ROWS = 8192
"""Most rows to evaluate where no sampling is wanted; a larger vocabulary is sampled evenly by importance."""
SMALLEST = 1e-9
"""Lower bound on the squares of a channel, for channels that are never used."""
_REACH = math.log(64)
"""Largest distance of log scales from their mean: fp16 block scales span 30 binades."""


def root_mean_square_scales(evidence: Evidence, alpha: float) -> Tensor:
    """Root mean squares of the channels to the power ``alpha``: SmoothQuant's scales without the weights' part."""
    energy = by_channel(evidence.site, evidence.inputs.float().square()).mean(0)
    return _centred(energy.clamp(min=SMALLEST).log() * alpha / 2)


def smooth_scales(evidence: Evidence, loaded: LoadedModel, alpha: float) -> Tensor:
    """SmoothQuant, equation 4: ``max|x_i|^alpha / max|w_i|^(1 - alpha)``, which inputs are divided by."""
    largest = by_channel(evidence.site, evidence.inputs.float().abs()).amax(0).clamp(min=SMALLEST)
    columns = torch.stack([loaded.weight(name).abs().amax(0) for name in evidence.site.readers]).amax(0)
    weights = by_channel(evidence.site, columns.unsqueeze(0)).amax(0).clamp(min=SMALLEST)
    return _centred(alpha * largest.log() - (1 - alpha) * weights.log())


def fit_scales(
    evidence: Evidence,
    loaded: LoadedModel,
    plans: Sequence[Formats],
    totals: Tensor,
    memories: Sequence[Memory],
    *,
    seed: int = 0,
) -> Tensor:
    """Scales ``[channels]`` of a site that minimize its loss relative to the model's, summed over memories and plans.

    Args:
        evidence: evidence of the site.
        loaded: the model.
        plans: formats that the model is expected to be stored in.
        totals: ``[memories, plans]``, expected loss of the whole model before folding, which losses are divided by.
        memories: memory settings to optimize for; under ``normal``, activations stay floats.
        seed: seed for the tokens and rows that are drawn.
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
    plans: Sequence[Formats],
    memories: Sequence[Memory],
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The expected loss ``[memories, plans]``, in nats per token, with scales ``[channels]`` of a site.

    Args:
        evidence: evidence of the site.
        loaded: the model.
        scale: the scales; may require a gradient.
        plans: formats of the readers.
        memories: memory settings; under ``normal``, activations stay floats.
        generator: draws tokens and rows; None uses all tokens and up to `_MANY_ROWS` rows.
    """
    columns = evidence.site.expand(scale)
    inputs, along = evidence.inputs, evidence.tokens
    if generator is not None:
        drawn = torch.randint(len(inputs), (_TOKENS,), generator=generator).to(inputs.device)
        inputs, along = inputs[drawn], along[drawn]
    seen = inputs.float()
    with torch.no_grad():
        largest = (seen.abs() / columns).argmax(1)
    steps = seen.gather(1, largest.unsqueeze(1)).squeeze(1).abs() / columns[largest] / 127
    rounded = (along * steps.square()).mean() * (columns.square() * evidence.columns).sum() / 24
    int8 = [[memory == "low" and not plan[evidence.site.name].is_float for plan in plans] for memory in memories]
    loss = rounded * torch.tensor(int8, device=rounded.device)
    energy = seen.square().mean(0) / columns.square()
    uses = [(reader, slopes, energy) for reader, slopes in evidence.rows.items()]
    if evidence.lookups is not None and evidence.looked_up is not None:
        uses.append((evidence.site.name, evidence.looked_up, evidence.lookups / columns.square()))
    for name, importance, met in uses:
        rows, factor = _drawn(importance, generator)
        weight = loaded.weight_rows(name, rows)
        loss = loss + _roundings(weight, columns, [plan[name] for plan in plans], factor, met)
    return loss


def _roundings(
    weight: Tensor, columns: Tensor, formats: Sequence[QuantFormat], rows: Tensor, energies: Tensor
) -> Tensor:
    """Expected losses ``[formats]`` from rounding ``weight [rows, in_features]`` times its columns' factors.

    Args:
        weight: the rows.
        columns: the factors; may require a gradient.
        formats: the formats.
        rows: factors per row.
        energies: per column.
    """
    scaled = weight * columns.detach()
    # what formats of one layout lose differs by the squares of their numbers of levels alone
    ranges: dict[tuple[int, bool], Tensor] = {}
    losses = []
    for fmt in formats:
        if fmt.is_float:
            losses.append(torch.zeros((), device=weight.device))
            continue
        size = fmt.resolve(weight.shape[1]).block_size(weight.shape[1])
        layout = size, fmt.symmetric
        if layout not in ranges:
            reach = _reach(weight, columns, scaled.view(len(weight), -1, size), symmetric=fmt.symmetric)
            ranges[layout] = ((rows @ reach.square()) * energies.reshape(-1, size).sum(1)).sum() / 24
        levels = 2 ** (fmt.bits - 1) - 1 if fmt.symmetric else 2**fmt.bits - 1
        losses.append(ranges[layout] / levels**2)
    return torch.stack(losses)


def _reach(weight: Tensor, columns: Tensor, blocks: Tensor, *, symmetric: bool) -> Tensor:
    """How far the values of each block reach, ``[rows, n_blocks]``; its gradient is that of the extreme ones alone.

    Args:
        weight: ``[rows, in_features]``.
        columns: factors of its columns; may require a gradient.
        blocks: ``[rows, n_blocks, block]``: both multiplied.
        symmetric: whether the range is about 0.
    """
    starts = torch.arange(blocks.shape[1], device=blocks.device) * blocks.shape[2]

    def at(places: Tensor) -> Tensor:
        where = places + starts
        return weight.gather(1, where) * columns[where]

    if symmetric:
        return at(blocks.abs().argmax(2)).abs()
    return at(blocks.argmax(2)) - at(blocks.argmin(2))


def _drawn(importance: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Row indices and their factors: all rows with their importance, or rows sampled in proportion to it."""
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


def by_channel(site: FoldSite, values: Tensor) -> Tensor:
    """``[rows, in_features]`` to ``[rows * sharing columns, channels]``."""
    shared, heads = site.repeats
    return values.reshape(-1, heads, shared, site.channels // heads).transpose(1, 2).reshape(-1, site.channels)


def _centred(log_scale: Tensor) -> Tensor:
    return (log_scale - log_scale.mean()).clamp(-_REACH, _REACH).exp()
