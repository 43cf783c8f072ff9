"""What llmexport is given of a model's folder: no code, and a tokenizer in the form that it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qplan.errors import InputError
from qplan.model.inert import TOKENIZER_CONFIG_FILE, inert_view
from qplan.model.source import read_config

_TOKENIZER_FILE = "tokenizer.json"


@contextmanager
def export_view(folder: Path, at: Path) -> Iterator[Path]:
    """Yield what llmexport may read of a Hugging Face folder; it is gone afterwards.

    llmexport loads with ``trust_remote_code=True``, writes a tokenizer that the engine does not look for where there
    is no ``tokenizer.json``, and fails on several chat templates: the view has a ``tokenizer.json`` without gaps and
    the template that transformers takes unasked.

    Args:
        folder: the model's.
        at: where to make the view.

    Raises:
        InputError: no config, no weights, or a tokenizer that can't be written as ``tokenizer.json``.
    """
    with inert_view(folder, at) as view:
        if not (view / _TOKENIZER_FILE).is_file():
            _write_tokenizer(folder, view)
        _fill_vocabulary(view / _TOKENIZER_FILE)
        _settle_template(view)
        yield view


def _write_tokenizer(folder: Path, view: Path) -> None:
    from qplan.model.load import load_tokenizer  # noqa: PLC0415 - torch

    backend = getattr(load_tokenizer(folder, view), "backend_tokenizer", None)
    if backend is None:
        msg = f"{folder} has a tokenizer without a fast form, which MNN can't read; save it with a tokenizer.json"
        raise InputError(msg)
    backend.save(str(view / _TOKENIZER_FILE))


def _fill_vocabulary(path: Path) -> None:
    """Leave no id of a vocabulary out: the engine's list has as many places as tokens, and it writes beyond its end."""
    tokenizer = read_config(path)
    model = tokenizer.get("model")
    tokens = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(tokens, dict):
        return
    gaps = set(range(max(tokens.values(), default=-1))) - set(tokens.values())
    if gaps:
        added = {token["id"]: token["content"] for token in tokenizer.get("added_tokens") or ()}
        # the others are such that no merge makes them, and no text
        tokens |= {added.get(gap, f"<unused id {gap}>"): gap for gap in sorted(gaps)}
        path.unlink()
        path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _settle_template(view: Path) -> None:
    path = view / TOKENIZER_CONFIG_FILE
    config = read_config(path) if path.is_file() else {}
    templates = config.get("chat_template")
    if isinstance(templates, list | dict):
        # a list of objects in files that transformers writes, names to texts in those of people
        pairs = ((one.get("name"), one.get("template")) for one in templates if isinstance(one, dict))
        named = templates if isinstance(templates, dict) else dict(pairs)
        config["chat_template"] = named.get("default")
        if config["chat_template"] is None:
            del config["chat_template"]
        path.write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
