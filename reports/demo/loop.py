"""The training loop of the demo model: seeded, and bounded by steps and by wall-clock time."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn import functional
from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)
_LOG_EVERY = 25
_LOSS_SMOOTHING = 0.05
_FIRST_WARMUP_SHARE = 0.01
_SECONDS_PER_MINUTE = 60.0


@dataclass(frozen=True)
class Recipe:
    """What determines a training run.

    Attributes:
        steps: Largest number of optimizer steps.
        minutes: Wall-clock limit of the loop, in minutes; the learning rate then falls by the clock.
        seed: Seed of the initial weights and of the order of the batches.
        batch: Sequences per step.
        sequence: Tokens per sequence.
        peak_lr: Highest learning rate.
        final_lr_share: Last learning rate as a share of the highest.
        warmup: Share of the run in which the learning rate rises.
        weight_decay: Decoupled weight decay of the matrices.
        betas: AdamW's decay rates.
        clip: Upper limit of the gradient's norm.
        bf16: Whether the forward pass runs under bfloat16 autocast.
    """

    steps: int
    minutes: float
    seed: int
    batch: int = 8
    sequence: int = 256
    peak_lr: float = 3e-3
    final_lr_share: float = 0.03
    warmup: float = 0.04
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.97)
    clip: float = 1.0
    bf16: bool = True


@dataclass
class Outcome:
    """What a training run did.

    Attributes:
        steps: Optimizer steps taken.
        tokens: Tokens trained on, repetitions included.
        seconds: Wall-clock time of the loop, in seconds.
        ended_by: Which limit ended the run, "steps" or "minutes".
        log: Every line of the log.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    ended_by: str = "steps"
    log: list[str] = field(default_factory=list)


def batches(stream: torch.Tensor, recipe: Recipe) -> Iterator[torch.Tensor]:
    """Yields endless batches of (batch, sequence + 1) tokens, one pass over the stream after another.

    Each pass cuts the stream at another offset, so that the windows differ between passes.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        offset = int(torch.randint(recipe.sequence, (1,), generator=generator))
        rows = stream[offset:].unfold(0, recipe.sequence + 1, recipe.sequence)
        order = torch.randperm(rows.shape[0], generator=generator)
        for first in range(0, len(order) - recipe.batch + 1, recipe.batch):
            yield rows[order[first : first + recipe.batch]]


def learning_rate(progress: float, recipe: Recipe) -> float:
    """Returns the learning rate: a linear rise, then a cosine fall.

    Args:
        progress: Share of the run that is done, 0 to 1.
        recipe: The run's recipe.
    """
    if progress < recipe.warmup:
        return recipe.peak_lr * max(progress / recipe.warmup, _FIRST_WARMUP_SHARE)
    fall = 0.5 * (1.0 + math.cos(math.pi * (progress - recipe.warmup) / (1.0 - recipe.warmup)))
    return recipe.peak_lr * (recipe.final_lr_share + (1.0 - recipe.final_lr_share) * fall)


def make_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.AdamW:
    """Returns AdamW that decays the matrices only: decaying norms and biases would only hurt."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas)


def _train_step(model: PreTrainedModel, optimizer: torch.optim.AdamW, batch: torch.Tensor, recipe: Recipe) -> float:
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return float(loss.detach())


def fit(model: PreTrainedModel, stream: torch.Tensor, recipe: Recipe) -> Outcome:
    """Trains a model in place until the recipe's steps are done or its minutes are over.

    Args:
        model: The model, in fp32.
        stream: The training tokens.
        recipe: The run's recipe.
    """
    optimizer = make_optimizer(model, recipe)
    outcome = Outcome()
    budget = recipe.minutes * _SECONDS_PER_MINUTE
    started = time.monotonic()
    mean_loss = math.log(model.config.vocab_size)
    model.train()
    for batch in batches(stream, recipe):
        outcome.seconds = time.monotonic() - started
        # A slow machine ends the run by the clock; the learning rate must have fallen by then.
        progress = max(outcome.steps / recipe.steps, outcome.seconds / budget)
        if progress >= 1.0:
            break
        rate = learning_rate(progress, recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _train_step(model, optimizer, batch, recipe)
        mean_loss += _LOSS_SMOOTHING * (loss - mean_loss)
        outcome.steps += 1
        outcome.tokens += batch[:, 1:].numel()
        if outcome.steps % _LOG_EVERY == 0:
            _report(outcome, mean_loss, rate, recipe)
    outcome.ended_by = "steps" if outcome.steps >= recipe.steps else "minutes"
    return outcome


def _report(outcome: Outcome, loss: float, rate: float, recipe: Recipe) -> None:
    by_steps = outcome.seconds / outcome.steps * (recipe.steps - outcome.steps)
    left = min(by_steps, recipe.minutes * _SECONDS_PER_MINUTE - outcome.seconds)
    line = (
        f"step {outcome.steps}/{recipe.steps} loss {loss:.4f} lr {rate:.2e} "
        f"{outcome.tokens / max(outcome.seconds, 1e-9):.0f} tokens/s "
        f"elapsed {outcome.seconds:.0f} s left {max(left, 0.0):.0f} s"
    )
    outcome.log.append(line)
    _LOG.info(line)
