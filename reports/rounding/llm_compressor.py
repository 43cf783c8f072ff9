"""llm-compressor's GPTQ on given tokens, all decoder linears at one width. Runs in its environment, without qplan.

Takes a JSON file: ``model`` (folder), ``tokens`` (``.npy``, int64 ``[rows, seq_len]``), ``bits``, ``block``, ``out``:
safetensors file, of every linear the weights that its integers stand for, and, under ``scale:`` and ``zero:`` with its
name, its grid (``[out, blocks]``), integers counted from 0.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier

from reports.rounding.peer_job import grid_of, leave, read_job


def main() -> None:
    """Quantize, write the weights, and print the processor seconds."""
    job, model, rows = read_job(__doc__)
    texts = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": np.ones_like(rows).tolist()})
    weights = QuantizationArgs(
        num_bits=job["bits"], type="int", symmetric=False, strategy="group", group_size=job["block"]
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    recipe = GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"])
    start = time.process_time()
    oneshot(
        model=model,
        dataset=texts,
        recipe=recipe,
        num_calibration_samples=len(rows),
        max_seq_length=rows.shape[1],
        shuffle_calibration_samples=False,
    )
    seconds = time.process_time() - start
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if hasattr(module, "weight_scale"):
            zero = module.weight_zero_point.float() + 2 ** (job["bits"] - 1)
            found |= grid_of(name, module.weight, module.weight_scale, zero)
    leave(job, found, seconds)


if __name__ == "__main__":
    main()
