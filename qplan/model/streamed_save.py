"""Writes a streamed model as a Hugging Face folder, one layer in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from qplan.artifact import write_text, writing
from qplan.model.load import LoadedModel
from qplan.model.source import INDEX_FILE
from qplan.model.streamed import Streamed


def save_streamed(loaded: LoadedModel, folder: Path) -> None:
    """Write configuration and weights into a new folder, in the type that the model computes in.

    Raises:
        StorageError: the disk has no space for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = loaded.config
    config.architectures, config.dtype = [loaded.card.architecture], loaded.dtype
    config.save_pretrained(folder)
    parts = _parts(loaded)
    files = {part: f"model-{number:05}-of-{len(parts):05}.safetensors" for number, part in enumerate(parts, 1)}
    where: dict[str, str] = {}
    total = 0
    for part, file in files.items():
        tensors = dict(_tensors(loaded, parts[part]))
        total += sum(tensor.nbytes for tensor in tensors.values())
        where |= dict.fromkeys(tensors, file)
        with writing(folder / file, need=sum(tensor.nbytes for tensor in tensors.values())):
            save_file(tensors, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_text(folder / INDEX_FILE, json.dumps(index, indent=2))


def _parts(loaded: LoadedModel) -> dict[str, list[str]]:
    """Paths of all modules, by the part of the model that is written at once: a layer, the embedding, the head."""
    architecture = loaded.architecture
    tied = loaded.card.tensor(architecture.head).tied
    parts: dict[str, list[str]] = {}
    for path, _ in loaded.model.named_modules():
        if path == architecture.head and tied:
            continue  # the embedding's matrix
        inside = path.startswith(f"{architecture.layers}.")
        part = path.removeprefix(f"{architecture.layers}.").partition(".")[0] if inside else path
        parts.setdefault(part if inside or path in {architecture.head, architecture.embedding} else "", []).append(path)
    return {part: paths for part, paths in parts.items() if any(True for _ in _names(loaded, paths))}


def _names(loaded: LoadedModel, paths: list[str]) -> Iterator[str]:
    for path in paths:
        module = loaded.model.get_submodule(path)
        if isinstance(module, Streamed) or next(module.parameters(recurse=False), None) is not None:
            yield path


def _tensors(loaded: LoadedModel, paths: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of some modules under the names of the checkpoint."""
    for path in _names(loaded, paths):
        module = loaded.model.get_submodule(path)
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{path}.{name}", parameter.detach().cpu().contiguous()
        if isinstance(module, Streamed):
            weight, keys, start = module.weight.cpu(), module.source.keys, 0
            if len(keys) == 1:
                yield f"{path}.weight", weight.contiguous()
                continue
            for key in keys:
                rows = module.source.checkpoint.headers[key].shape[0]
                yield key, weight[start : start + rows].contiguous()
                start += rows
