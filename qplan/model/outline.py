"""The shape of a model from its configuration and the headers of its weight files: no weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qplan.card import ModelCard
from qplan.cost.shape import Shape
from qplan.model.discovery import dissect
from qplan.model.door import check_folder
from qplan.model.inert import inert_view
from qplan.model.load import card_of
from qplan.model.mixture import split_experts
from qplan.model.registry import architecture_of
from qplan.model.source import fetch, weight_files
from qplan.model.stock import blamed_on, check_builds, without_bars


def outline(source: str) -> Shape:
    """The shape of a model.

    Args:
        source: local folder or hub id.

    Raises:
        InputError: a model that cannot be planned, as far as headers and the configuration show.
    """
    folder = fetch(source)
    check_folder(folder)
    with inert_view(folder) as view:
        check_builds(folder, view)
        config: Any = AutoConfig.from_pretrained(view, local_files_only=True, trust_remote_code=False)
        stored = sum(path.stat().st_size for path in weight_files(view))
    return Shape.of(_card(source, folder, config), stored, _share(config))


def shape_of(card: ModelCard, folders: Sequence[Path]) -> Shape:
    """The shape of a model whose card is known, in some folders: checkpoints of all of them are read.

    Raises:
        InputError: a config that cannot be read.
    """
    stored = sum(path.stat().st_size for folder in folders for path in weight_files(folder))
    with inert_view(folders[0]) as view:
        config: Any = AutoConfig.from_pretrained(view, local_files_only=True, trust_remote_code=False)
    return Shape.of(card, stored, _share(config))


def _card(source: str, folder: Path, config: Any) -> ModelCard:  # noqa: ANN401 - a PreTrainedConfig
    architecture = architecture_of(config.model_type)
    built = blamed_on(folder, "has a config.json that transformers cannot build a model from")
    with built, without_bars(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        split_experts(model, config, architecture)
    return card_of(source, "", model, dissect(model, config, architecture))


def _share(config: Any) -> float:  # noqa: ANN401
    """Share of the experts that a token meets; 1 without any."""
    experts, chosen = getattr(config, "num_experts", None), getattr(config, "num_experts_per_tok", None)
    return chosen / experts if experts and chosen else 1.0
