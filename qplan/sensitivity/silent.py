"""Whether a loss of exactly 0 is a fact: pruning and block expansion leave zeros that hide what stands before them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.rounding import Int8Activations
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats
from qplan.settings import Memory


@dataclass
class SilentTensors:
    """Runs the whole model, once plainly and once changed: another way to the logits than losses are measured on."""

    loaded: LoadedModel
    tokens: Tensor
    """int64 ``[1, seq_len]``: the sequence that is run."""
    stored: StoredWeights
    activations: Int8Activations
    _plain: Tensor | None = None
    _unheard: dict[str, bool] = field(default_factory=dict)

    def loses_nothing(self, name: str, fmt: QuantFormat, memory: Memory) -> bool:
        """Whether the logits stay the same, bit for bit, with a tensor in a format."""
        plain = self._reference()  # before anything is changed
        if self._hidden(name):
            return True
        with apply_formats(self.loaded, {name: fmt}, memory, self.activations, stored=self.stored):
            return torch.equal(self.loaded.logits(self.tokens), plain)

    def _hidden(self, name: str) -> bool:
        """Whether the logits do not depend on a tensor's output: random numbers in its place change nothing."""
        if name not in self._unheard:
            linear, rows = self.loaded.linear(name), self.loaded.sites[name].rows

            def noise(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
                generator = torch.Generator().manual_seed(0)
                part = output[..., rows]
                other = torch.randn(part.shape, generator=generator).to(part)
                changed = output.clone()
                changed[..., rows] = other * (1 + part.abs().amax())
                return changed

            plain = self._reference()
            handle = linear.register_forward_hook(noise)
            try:
                self._unheard[name] = torch.equal(self.loaded.logits(self.tokens), plain)
            finally:
                handle.remove()
        return self._unheard[name]

    def _reference(self) -> Tensor:
        if self._plain is None:
            self._plain = self.loaded.logits(self.tokens)
        return self._plain
