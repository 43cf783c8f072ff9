"""A model folder without anything that could run: what transformers and the exporter are given in place of the user's.

Hugging Face folders may bring Python (``auto_map``), name kernels to fetch and run (``attn_implementation``), or hold
pickles. Libraries run these when they are asked to trust a folder, and llmexport always asks. So nothing is given the
folder itself: a view of it holds configuration rewritten without such keys, and links to files of a few known names
that are data. What is not in the view can't run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qplan.artifact import temporary_folder
from qplan.errors import InputError
from qplan.model.headers import read_headers
from qplan.model.registry import ARCHITECTURES
from qplan.model.source import INDEX_FILE, WEIGHTS_FILE, read_config, weight_files

CONFIG_FILE, TOKENIZER_CONFIG_FILE = "config.json", "tokenizer_config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"

_REWRITTEN = (CONFIG_FILE, TOKENIZER_CONFIG_FILE, GENERATION_CONFIG_FILE)
"""JSON that libraries take class names, kernels and switches from."""

_DATA = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    TEMPLATE_FILE,
)
"""Data besides weights: parsed, never run; templates are rendered in a sandbox by transformers."""

VIEWED = (*_REWRITTEN, *_DATA)
"""Everything but weights and their index that transformers and the exporter are given."""

_TIE_KEY = "tie_word_embeddings"
"""Whether head and embedding are one matrix; classes have defaults of their own."""

_RUNS = frozenset({"auto_map", "custom_generate", "custom_pipelines", "trust_remote_code", "use_kernels"})
"""Keys that name code."""

_FORMS = frozenset({"return_dict", "torchscript", "output_attentions", "output_hidden_states"})
"""Keys that change in what form a model answers, and nothing of what it computes; callers here want the usual one."""

_IMPLEMENTATION = "_implementation"
"""How keys end that choose a kernel, which may be one to be fetched from the hub and run."""


@contextmanager
def inert_view(folder: Path, at: Path | None = None) -> Iterator[Path]:
    """Yield a folder that holds what is data of a model folder; it is gone afterwards.

    Args:
        folder: a Hugging Face folder.
        at: where to make it, not there yet; None for a temporary place.

    Raises:
        InputError: no config, JSON that can't be read, or no weights.
    """
    with temporary_folder("model") as temporary:
        view = at or Path(temporary) / "model"
        view.mkdir()
        weights = weight_files(folder)
        try:
            for name in _REWRITTEN:
                path = folder / name
                if name == CONFIG_FILE or path.is_file():
                    value = without_code(read_config(path))
                    if name == CONFIG_FILE and _has_no_head(value, weights):
                        value = {_TIE_KEY: True} | value
                    text = json.dumps(value, indent=1, ensure_ascii=False)
                    (view / name).write_text(text, encoding="utf-8")
            for path in (*(folder / name for name in _DATA), *weights):
                if path.is_file():
                    (view / path.name).symlink_to(path.resolve())
            if weights != (folder / WEIGHTS_FILE,):
                # transformers wants metadata there, which other tools leave out
                index = read_config(folder / INDEX_FILE) | {"metadata": {}}
                (view / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
            yield view
        finally:
            shutil.rmtree(view)


def without_code(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON value without the keys, at any depth, that name something to run or another form of answers."""
    if isinstance(value, dict):
        return {key: without_code(inner) for key, inner in value.items() if not _is_left_out(key)}
    return [without_code(inner) for inner in value] if isinstance(value, list) else value


def _has_no_head(config: Mapping[str, Any], weights: Iterable[Path]) -> bool:
    """Whether a checkpoint can only be meant as tied, if its configuration doesn't say."""
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    return architecture is not None and f"{architecture.head}.weight" not in read_headers(weights)


def own_classes(folder: Path) -> dict[str, str]:
    """Classes that a folder wants to bring, by what for: ``{"AutoModelForCausalLM": "AcmeForCausalLM"}``.

    Raises:
        InputError: JSON that can't be read.
    """
    found: dict[str, str] = {}
    for name in (CONFIG_FILE, TOKENIZER_CONFIG_FILE):
        path = folder / name
        wanted = read_config(path).get("auto_map") if path.is_file() else None
        if isinstance(wanted, Mapping):
            found |= {str(what): _class_name(target) for what, target in wanted.items()}
        elif wanted is not None:  # old tokenizers: a class, or a slow and a fast one
            found["AutoTokenizer"] = _class_name(wanted)
    return found


def check_own_classes(folder: Path, stock: Mapping[str, str]) -> tuple[str, ...]:
    """Refuse a folder whose own code is for other classes than those that stand in for them.

    Args:
        folder: the model's.
        stock: transformers' class by what it is used for, as in ``auto_map``.

    Returns:
        Names of the classes that the folder brings and that are left alone.

    Raises:
        InputError: a class of another name, which may compute something else.
    """
    found = own_classes(folder)
    for what, name in found.items():
        there = stock.get(what)
        if there is not None and name.removesuffix("Fast") != there.removesuffix("Fast"):
            msg = (
                f"{folder} brings its own code: {what} is {name}, and qplan runs no code of a model's folder; "
                f"transformers' {there} may compute something else. Convert the model to {there} and save it again"
            )
            raise InputError(msg)
    return tuple(sorted({name for name in found.values() if name}))


def _is_left_out(key: str) -> bool:
    return key in _RUNS | _FORMS or key.endswith(_IMPLEMENTATION)


def _class_name(target: object) -> str:
    """``AcmeTokenizer`` of ``"repo--module.AcmeTokenizer"``, or of the last of a list of such."""
    if isinstance(target, list):
        return next((_class_name(one) for one in reversed(target) if one), "")
    return str(target).rpartition(".")[2]
