"""Orthogonal rotations between values and the output projection, merged into both: offline QuaRot's second rotation.

Attention mixes tokens, not a head's channels: ``o R' (R v)`` is the same for an orthogonal ``R`` per value head
(QuaRot, arXiv 2404.00456; SpinQuant, arXiv 2405.16406).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import torch
from scipy.linalg import hadamard
from torch import Tensor

from qplan.folding.evidence import Evidence
from qplan.folding.fold import FoldSite, fold_sites
from qplan.model.load import LoadedModel

Rotation = Literal["hadamard", "random", "pca"]


def rotation_of(evidence: Evidence, kind: Rotation, seed: int = 0) -> Tensor:
    """Orthogonal float64 ``[value heads, head size, head size]`` of one site; PCA is that of the heads' outputs."""
    shared, heads = evidence.site.repeats
    size = evidence.site.channels // heads
    if kind == "hadamard":
        return torch.from_numpy(hadamard(size) / size**0.5).to(torch.float64).expand(heads, size, size)
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        turned: Tensor = torch.linalg.qr(torch.randn(heads, size, size, generator=generator, dtype=torch.float64))[0]
        return turned
    outputs = evidence.inputs.to(torch.float64).reshape(-1, heads, shared, size).permute(1, 0, 2, 3).flatten(1, 2)
    vectors: Tensor = torch.linalg.eigh(outputs.transpose(1, 2) @ outputs)[1]
    return vectors.transpose(1, 2)


def rotate_values(loaded: LoadedModel, rotations: dict[str, Tensor]) -> LoadedModel:
    """A copy of a model with ``R`` on the values and ``R'`` on the linears that read them, by site."""
    copied = replace(loaded, model=copy.deepcopy(loaded.model))
    for site in fold_sites(copied):
        if site.name in rotations:
            _rotate(copied, site, rotations[site.name])
    return copied


def _rotate(loaded: LoadedModel, site: FoldSite, rotation: Tensor) -> None:
    shared, heads = site.repeats
    source = loaded.model.get_submodule(site.source)
    for _, parameter in source.named_parameters(recurse=False):
        part = parameter.data[site.rows]
        turned = rotation @ part.to(torch.float64).reshape(heads, rotation.shape[1], -1)
        part.copy_(turned.reshape(part.shape))
    for reader in site.readers:
        weight = loaded.weight(reader).data
        columns = weight.to(torch.float64).reshape(len(weight), heads, shared, -1)
        weight.copy_(torch.einsum("ohsi,hji->ohsj", columns, rotation).reshape(weight.shape))
