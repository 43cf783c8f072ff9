"""What a notebook opens: a saved run with its frames, figures, and plans solved again in an instant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from qplan.errors import InputError
from qplan.explore.frames import token_frame
from qplan.explore.opened import OpenedRun
from qplan.explore.run_card import RunCard
from qplan.explore.saved import checked_format, checked_multiplier, checked_tensor, find_home, under
from qplan.explore.table import SensitivityView
from qplan.planner.problem import HEAD_LEAST_BITS
from qplan.run.table import SensitivityTable
from qplan.run.token_losses import TokenLosses

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from qplan.explore.slider import BudgetSlider
    from qplan.mnn.engine.engine import Engine
    from qplan.mnn.runtime import RuntimeConfig


def open_run(path: str | Path | None = None) -> Run:
    """Open a run that `qplan analyze` or `make demo` left.

    Args:
        path: its folder, a budget's folder inside, or a file of either; None for the latest under ``qplan-runs``.

    Raises:
        InputError: no finished analysis there; names those nearby.
        StaleArtifactError: written by a newer qplan.

    Example:
        >>> run = qplan.open_run("qplan-runs/stdlib-3m")
        >>> run.sensitivity.query("format == 'int4'").nlargest(5, "loss_nats")
    """
    home = find_home(path)
    return Run(home, SensitivityView(SensitivityTable.read(home.sensitivity)))


@dataclass(frozen=True, eq=False)
class Run(OpenedRun):
    """One analysis and the plans made from it. Reads saved files; methods that need the model itself say so.

    Losses are mean KL(FP32 || variant) at the logits in nats per token; bytes are of the files that ship. Every figure
    is a matplotlib ``Figure``, which leaves pyplot's state alone; the first one imports matplotlib.
    """

    def plot_losses(self, formats: str | Sequence[str] | None = None, *, memory: str | None = None) -> Figure:
        """Heat maps, layers x tensors, of the loss of one tensor at a time; a color means the same in every format.

        Example:
            >>> run.plot_losses(["int8", "int4"])

        Args:
            formats: one, several, or None for the narrow integer formats of one block size.
            memory: ``low`` or ``normal``; None for the run's.

        Raises:
            InputError: a format or memory setting that was not measured; says which were.
        """
        from qplan.explore.loss_figures import loss_heatmaps  # noqa: PLC0415

        return loss_heatmaps(under(self.table.table, memory), formats)

    def plot_ranking(self, fmt: str | None = None, *, top: int = 20, memory: str | None = None) -> Figure:
        """The most sensitive tensors in a format with 95 % intervals; hollow marks are estimates from gradients.

        Args:
            fmt: a format of the run; None for ``run.table.narrow``.
            top: how many.
            memory: ``low`` or ``normal``; None for the run's.

        Example:
            >>> run.plot_ranking("int4", top=10).savefig("ranking.png")

        Raises:
            InputError: a format or memory setting that was not measured; says which were.
        """
        from qplan.explore.loss_figures import ranking  # noqa: PLC0415

        return ranking(under(self.table.table, memory), fmt or self.table.narrow, top)

    def plot_sqnr(self, formats: Sequence[str] | None = None, *, memory: str | None = None) -> Figure:
        """Loss of the model over the SQNR of the tensor's own output in dB, one point per tensor and format.

        SQNR is known of every tensor and format, measured or estimated: `qplan.run.metrics.Metrics`.

        Raises:
            InputError: a format or memory setting that was not measured; says which were.
        """
        from qplan.explore.loss_figures import loss_against_sqnr  # noqa: PLC0415

        return loss_against_sqnr(under(self.table.table, memory), formats)

    def plot_frontier(self) -> Figure:
        """KL over file size in MB: plans, their knees, uniform models, and what the engine measured.

        Example:
            >>> run.plot_frontier().savefig("frontier.png", dpi=200)
        """
        from qplan.report.frontier import frontier_figure  # noqa: PLC0415

        frontier, measured = self.swept
        return frontier_figure(self.table.table, frontier, measured)

    def plot_predictions(self) -> Figure:
        """Predicted against measured KL of every model that was built, on logarithmic axes.

        Raises:
            InputError: no plan was built yet.
        """
        from qplan.explore.plan_figures import predictions  # noqa: PLC0415

        frame = self.verification
        if frame.empty:
            msg = f"{self.home.folder} holds nothing measured on the engine; run 'qplan emit' without --no-build"
            raise InputError(msg)
        return predictions(frame)

    def weights(self, tensor: str) -> NDArray[np.float32]:
        """Weights ``[out_features, in_features]`` of a tensor of the analyzed model, read without torch where possible.

        Raises:
            InputError: no such tensor, or the model no longer exists.
        """
        from qplan.explore.stored import read_weight  # noqa: PLC0415

        table = self.table.table
        return read_weight(self.home, table, checked_tensor(table, tensor))

    def plot_weights(self, tensor: str, fmt: str | None = None) -> Figure:
        """Histogram of a tensor's weights with the grids that a format rounds them to.

        Reads what the run stores; imports torch where it stored no integers (``--rounding rtn``).

        Args:
            tensor: name, or a pattern that matches one, e.g. ``0.mlp.down_proj``.
            fmt: an integer format that was measured for it; None for ``run.table.narrow``.

        Example:
            >>> run.plot_weights("0.mlp.down_proj", "int4")

        Raises:
            InputError: no such tensor, or a format without a grid; says what there is.
        """
        from qplan.explore.stored import read_grid, read_weight  # noqa: PLC0415
        from qplan.explore.tensor_figures import weight_histogram  # noqa: PLC0415

        table = self.table.table
        name = checked_tensor(table, tensor)
        grid = read_grid(self.home, table, name, checked_format(table, name, fmt or self.table.narrow))
        return weight_histogram(name, read_weight(self.home, table, name), grid)

    def plot_activations(self, tensor: str, *, tokens: int = 2048) -> Figure:
        """Histogram of what a tensor multiplies, with the int8 grid that MNN rounds it to under memory low.

        Runs the model in FP32 over the first calibration tokens: imports torch and transformers.

        Args:
            tensor: name, or a pattern that matches one.
            tokens: at most this many.

        Raises:
            InputError: no such tensor, an untied embedding, which multiplies nothing, or the model no longer exists.
            StaleArtifactError: the model has changed since.
        """
        from qplan.explore.loaded import inputs_of  # noqa: PLC0415 - torch
        from qplan.explore.tensor_figures import activation_histogram  # noqa: PLC0415

        table = self.table.table
        name = checked_multiplier(table, tensor)
        return activation_histogram(name, inputs_of(self.home, table, name, tokens))

    def plot_channels(self, tensor: str) -> Figure:
        """Root mean square of every input feature of a tensor, from the run's moments, without loading the model.

        A run that was rounded to nearest keeps none: then the model is run, which imports torch.

        Raises:
            InputError: no such tensor, an untied embedding, which multiplies nothing, or the model no longer exists.
        """
        from qplan.explore.stored import channel_rms  # noqa: PLC0415
        from qplan.explore.tensor_figures import channel_profile  # noqa: PLC0415

        table = self.table.table
        name = checked_multiplier(table, tensor)
        return channel_profile(name, channel_rms(self.home, table, name))

    def token_losses(self, budget: str = "int8") -> TokenLosses:
        """KL to FP32 at every token of the text that a budget's model was judged on, as `qplan emit` measured it.

        Raises:
            InputError: no such plan, or it was built by a qplan that kept no token losses.
        """
        from qplan.explore.built import plan_tokens  # noqa: PLC0415

        return plan_tokens(self.plan(budget))

    def tokens(self, budget: str = "int8") -> pd.DataFrame:
        """KL at every token of the text that a budget's model was judged on, one row per token.

        Columns: ``sequence, position, before`` (the text up to the token), ``token``, and the KL of the distribution of
        the token that follows, by memory setting: ``normal_nats, low_nats``.

        Raises:
            InputError: no such plan, or it was built by a qplan that kept no token losses.
        """
        return token_frame(self.token_losses(budget))

    def plot_tokens(
        self,
        budget: str = "int8",
        *,
        row: int | None = None,
        first: int | None = None,
        count: int = 64,
        memory: str | None = None,
    ) -> Figure:
        """KL to FP32 along a text, of a budget's model and of MNN's uniform exports, with the text below.

        Args:
            budget: a budget of this run.
            row: sequence of the text; None for the one with the token that loses most.
            first: first token to show; None to show the surroundings of that token.
            count: how many tokens.
            memory: ``low`` or ``normal``; None for the plan's.

        Raises:
            InputError: no such plan, nothing kept, or a place outside of the text; says how long it is.
        """
        from qplan.explore.token_figures import losses_along_text  # noqa: PLC0415

        return losses_along_text(self.plan(budget), row=row, first=first, count=count, memory=memory)

    def error_by_layer(self, budget: str = "int8", *, tokens: int = 64) -> pd.DataFrame:
        """Where the error of a built model enters: KL of what the head reads after 0, 1, ... all layers.

        Runs the model in torch, and the built one on the engine once per layer. The head's own rounding is in every
        value.

        Args:
            budget: a budget of this run.
            tokens: how many of the first held-out sequence.

        Returns:
            One row per depth: ``model`` (the budget), ``layers`` (how many ran), ``kl_nats`` (mean per token, against
            FP32 at the same depth, under the plan's memory setting).

        Raises:
            InputError: no such plan, or it was not built.
            ToolError: the engine or the converter failed.
        """
        from qplan.explore.built import built_folder  # noqa: PLC0415
        from qplan.explore.loaded import errors_by_layer  # noqa: PLC0415 - torch

        view = self.plan(budget)
        found = errors_by_layer(self.home, self.table.table, built_folder(view), view.plan, tokens)
        return pd.DataFrame({"model": view.name, "layers": range(len(found)), "kl_nats": found})

    def plot_layers(self, errors: pd.DataFrame) -> Figure:
        """Draw the frame of `error_by_layer`, of one budget or of several, concatenated."""
        from qplan.explore.plan_figures import layers_figure  # noqa: PLC0415

        return layers_figure(errors, "Where the error enters: what the head reads at each depth")

    def price_of_logits_rule(
        self, budgets: Sequence[str | int] | None = None, logits_bits: int = HEAD_LEAST_BITS
    ) -> pd.DataFrame:
        """What the logits rule, which keeps the head wide, costs at several budgets, smallest first.

        Args:
            budgets: as for `solve`; None for six sizes from the smallest plan to uniform int8.
            logits_bits: the rule's least width.

        Returns:
            One row per budget: ``budget, budget_bytes, head`` (its format), ``head_without, nats`` (predicted KL of the
            whole model with the rule), ``nats_without, price_nats`` (their difference).

        Raises:
            InputError: a budget that is not understood.
            InfeasibleError: a budget below the smallest plan; says how large that is.
        """
        from qplan.explore.studies import price_of_logits_rule  # noqa: PLC0415

        return price_of_logits_rule(self, budgets, logits_bits)

    def across_memories(self, budget: str | int = "int8") -> pd.DataFrame:
        """Plans made for each memory setting at one budget of files, judged under every setting.

        Returns:
            Sums of single losses in nats per token: rows by the setting that was planned for, columns by the one that
            the model runs under.

        Raises:
            InputError: a budget that is not understood.
            InfeasibleError: a budget below the smallest plan; says how large that is.
        """
        from qplan.explore.studies import across_memories  # noqa: PLC0415

        return across_memories(self, budget)

    def slider(self, **rules: Any) -> BudgetSlider:  # noqa: ANN401 - those of `solve`
        """A slider over budgets that solves and draws the plan again; a static picture where widgets don't run.

        Args:
            rules: keyword arguments of `solve`.

        Raises:
            InfeasibleError: the rules allow no plan of any size.
        """
        from qplan.explore.slider import BudgetSlider  # noqa: PLC0415 - matplotlib

        return BudgetSlider(self, **rules)

    def engine(self, budget: str = "int8", runtime: RuntimeConfig | None = None) -> Engine:
        """The built model of a budget on MNN's engine, in its own process; see `qplan.Engine`.

        Args:
            budget: a budget of this run, or a plan's folder.
            runtime: settings of the engine; None for memory low, 1 thread.

        Raises:
            InputError: no such plan, or it was not built.
            ToolError: the engine does not load it.
        """
        from qplan.explore.built import built_folder  # noqa: PLC0415 - the engine's room
        from qplan.mnn.engine.engine import Engine  # noqa: PLC0415 - the engine's room

        return Engine(built_folder(self.plan(budget)), runtime)

    def __repr__(self) -> str:
        """Show what was analyzed and which plans there are."""
        return RunCard.of(self).text

    def _repr_html_(self) -> str:
        return RunCard.of(self).html

    def _repr_markdown_(self) -> str:
        return RunCard.of(self).markdown
