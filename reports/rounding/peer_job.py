"""What every peer's script reads and leaves; in the peers' environments there is no qplan."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def read_job(description: str | None) -> tuple[dict[str, Any], nn.Module, np.ndarray]:
    """The job that the command line names, its model in FP32, and its tokens; torch has one thread from here on."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("job", type=Path)
    job = json.loads(parser.parse_args().job.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    return job, model, np.load(job["tokens"])


def grid_of(name: str, weight: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
    """A linear's weights and grid, under the names that they are looked for."""
    parts = {name: weight, f"scale:{name}": scale, f"zero:{name}": zero}
    return {key: part.detach().float().contiguous() for key, part in parts.items()}


def leave(job: dict[str, Any], found: dict[str, Tensor], seconds: float) -> None:
    """Write the weights, and print the processor seconds."""
    save_file(found, job["out"])
    print(json.dumps({"s": seconds}))
