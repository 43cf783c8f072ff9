"""The model and its tokens for peers that work on Hugging Face models in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from reports.peers.score.job import Job
from reports.peers.score.meter import seconds_of


@dataclass(frozen=True)
class Subject:
    """The model that is scored, and its tokens."""

    model: Any
    """Hugging Face model in FP32, on the CPU, one thread."""
    batches: tuple[Tensor, ...]
    """int64 ``[batch_size, seq_len]`` each."""

    @classmethod
    def load(cls, job: Job) -> Subject:
        """Load the model and the tokens."""
        torch.set_num_threads(1)
        model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).eval()
        return cls(model, torch.from_numpy(job.ids).split(job.batch_size))

    def forward_s(self) -> float:
        """Processor seconds of one forward pass over all tokens."""

        @torch.no_grad()
        def forward() -> None:
            for batch in self.batches:
                self.model(input_ids=batch, use_cache=False)

        return seconds_of(forward)

    @property
    def linears(self) -> dict[str, int]:
        """Weights of every linear layer but the head, by name."""
        head = self.model.get_output_embeddings()
        modules = self.model.named_modules()
        return {name: m.weight.numel() for name, m in modules if isinstance(m, nn.Linear) and m is not head}
