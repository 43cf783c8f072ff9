"""QuaRot's offline rotation of the residual stream, for models whose head is not tied and whose norms are RMS norms.

``x Q`` has the norm of ``x``: norms' weights go into the linears behind them, linears that write to the stream are
rotated, and those that read it are rotated back (QuaRot, arXiv 2404.00456, section 4, without online rotations). A tied
head cannot follow, see `qplan.model.embedding_scale`; a copy with a head of its own shows what rotation would gain.

    python -m reports.folding.residual --model FOLDER --text FILE    # after reports.folding.run for the same model
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from qplan.calibration import load_text, tokenize
from qplan.folding.decide import check_equal
from qplan.folding.fold import fold_sites
from qplan.model.load import LoadedModel, load_model
from qplan.rounding.rounder import Rounder
from reports.folding.page import found_before, keep
from reports.folding.run import emulated


def untied_copy(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """The same model with a head of its own, from a new folder."""
    model: Any = copy.deepcopy(loaded.model)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(loaded.head.weight.detach().clone(), requires_grad=False)
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return load_model(str(folder))


def orthogonal(width: int, seed: int = 0) -> Tensor:
    """float64 ``[width, width]``: Hadamard's with random signs if the width is a power of two, else random."""
    generator = torch.Generator().manual_seed(seed)
    if width & (width - 1) == 0:
        signs = torch.randint(0, 2, (width,), generator=generator, dtype=torch.float64) * 2 - 1
        return torch.from_numpy(hadamard(width) / width**0.5).to(torch.float64) * signs
    turned: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    return turned


def rotate_residual(loaded: LoadedModel, rotation: Tensor) -> LoadedModel:
    """A copy of an untied model with its residual stream rotated.

    Raises:
        ValueError: a tied head.
    """
    copied = replace(loaded, model=copy.deepcopy(loaded.model))
    offset = copied.architecture.norm_offset
    read = set()
    for site in fold_sites(copied):
        if site.kind != "norm":
            continue
        if site.tied:
            msg = "a tied head cannot be rotated"
            raise ValueError(msg)
        norm = copied.model.get_submodule(site.source).get_parameter("weight").data
        for name in site.readers:
            weight = copied.weight(name).data
            weight.copy_((weight.to(torch.float64) * (norm.to(torch.float64) + offset)) @ rotation)
            read.add(name)
        norm.fill_(1.0 - offset)
    for spec in copied.card.tensors:
        if spec.name not in read:
            weight = copied.weight(spec.name).data
            weight.copy_(rotation.T @ weight.to(torch.float64))
            bias = copied.linear(spec.name).bias
            if bias is not None:
                bias.data.copy_(rotation.T @ bias.data.to(torch.float64))
    table = copied.embedding.weight.data
    table.copy_(table.to(torch.float64) @ rotation)
    return copied


def main() -> None:
    """Run for one model whose head is tied."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(options.model)
    text = load_text(options.text, loaded.tokenizer)
    limits = {"context": loaded.card.context, "vocabulary": loaded.card.vocabulary, "seed": 0}
    samples = options.tokens // options.seq_len
    judge = tokenize(text, loaded.tokenizer, samples=samples, seq_len=options.seq_len, **limits)
    tokens = torch.from_numpy(judge.tokens)
    with tempfile.TemporaryDirectory(prefix="qplan-untied-") as scratch:
        untied = untied_copy(loaded, Path(scratch) / "model")
        rotated = rotate_residual(untied, orthogonal(untied.embedding.embedding_dim))
        check_equal(loaded, rotated, tokens[:2])
        models = {"tied": loaded, "its own head": untied, "its own head, stream rotated": rotated}
        found = {name: emulated(Rounder(model), tokens) for name, model in models.items()}
    everything = found_before()
    everything[Path(options.model).name] |= {"residual": found, "residual_tokens": tokens.numel()}
    keep(everything)


if __name__ == "__main__":
    main()
