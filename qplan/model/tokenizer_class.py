"""The class that a folder names for its tokenizer; a general one stands in where transformers does not know it."""

from __future__ import annotations

from pathlib import Path

from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from qplan.model.inert import TOKENIZER_CONFIG_FILE, own_classes
from qplan.model.source import read_config


def unknown_tokenizer_class(folder: Path) -> str | None:
    """What ``tokenizer_config.json`` names and transformers lacks; None if it knows the class, or if none is named.

    A class that the folder brings code for is another matter, see `qplan.model.inert.check_own_classes`.

    Raises:
        InputError: JSON that can't be read.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    named = read_config(path).get("tokenizer_class") if path.is_file() else None
    if not isinstance(named, str) or not named or "AutoTokenizer" in own_classes(folder):
        return None
    known = any(tokenizer_class_from_name(name) is not None for name in (named, f"{named}Fast"))
    return None if known else named
