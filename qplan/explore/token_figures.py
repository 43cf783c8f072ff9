"""Where in a text a plan's model differs from FP32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from qplan.errors import InputError
from qplan.explore.built import plan_tokens, uniform_tokens
from qplan.explore.plan import PlanView
from qplan.explore.style import INK, PLAN, THIRD, UNIFORM, log_nats, quiet
from qplan.report import notation
from qplan.report.literal import figure_text
from qplan.run.token_losses import Losses, TokenLosses


def losses_along_text(view: PlanView, *, row: int | None, first: int | None, count: int, memory: str | None) -> Figure:
    """KL to FP32 of a plan's model along a text; see `qplan.explore.run.Run.plot_tokens`.

    Raises:
        InputError: no token losses, a setting that was not measured, or a place outside of the text; says how long it
            is.
    """
    own = plan_tokens(view)
    setting = memory or view.plan.memory
    if setting not in own.kl_nats:
        msg = f"memory {setting!r} was not measured; this plan has {', '.join(own.kl_nats)}"
        raise InputError(msg)
    losses = own.kl_nats[setting]
    rows, length = losses.shape
    sequence = int(losses.max(axis=1).argmax()) if row is None else row
    if not 0 <= sequence < rows:
        msg = f"row {sequence}: the text has sequences 0 to {rows - 1}"
        raise InputError(msg)
    count = min(count, length)
    start = max(0, min(int(losses[sequence].argmax()) - count // 2, length - count)) if first is None else first
    if not 0 <= start < length:
        msg = f"first {start}: a sequence has tokens 0 to {length - 1}"
        raise InputError(msg)
    others = uniform_tokens(view, own.text_sha256)
    shown = {name: o.kl_nats[setting] for name, o in others.items() if name != "fp16" and setting in o.kl_nats}
    return _figure(own, shown, setting, row=sequence, first=start, count=count)


def _figure(own: TokenLosses, others: Mapping[str, Losses], memory: str, *, row: int, first: int, count: int) -> Figure:
    """KL of one sequence's tokens to FP32, nats, with the text below; of a plan, and of uniform models for comparison.

    Args:
        own: losses of the plan's model.
        others: losses of uniform models on the same text, by name.
        memory: setting of the engine.
        row: the sequence.
        first: first token to show.
        count: how many tokens.
    """
    texts = own.tokens[row][first : first + count]
    places = np.arange(len(texts))
    figure = Figure(figsize=(min(16.0, max(7.6, 1.4 + 0.2 * len(texts))), 4.2), layout="constrained")
    axes = figure.subplots()
    mine = own.kl_nats[memory][row, first : first + count]
    floor = max(float(own.kl_nats[memory].mean()) / 300, 1e-9)
    for color, (name, losses) in zip((UNIFORM, THIRD), others.items(), strict=False):
        values = np.maximum(losses[row, first : first + count], floor)
        axes.plot(places, values, color=color, marker=".", linewidth=1, label=f"uniform {name}", zorder=3)
    shown = np.maximum(mine, floor)
    axes.plot(places, shown, color=PLAN, marker="o", markersize=7, linewidth=2.2, label="plan", zorder=4)
    mean = float(own.kl_nats[memory].mean())
    axes.axhline(
        mean, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"plan, mean of all tokens: {notation.loss(mean)}"
    )
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    log_nats(axes, "y")
    axes.set_xticks(places, [_visible(text) for text in texts], rotation=90, fontsize=8, family="monospace")
    axes.set_xlim(-0.7, len(texts) - 0.3)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(f"KL at memory {memory}, nats")
    title = f"KL of the next token after each of {len(texts)} tokens (sequence {row}, from token {first})"
    axes.set_title(title, loc="left")
    quiet(axes, "y")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _visible(text: str) -> str:
    """A token as a label: blanks and line ends visible."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")
    return figure_text(shown if len(shown) <= 14 else shown[:13] + "…")
