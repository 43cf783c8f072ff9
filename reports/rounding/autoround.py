"""AutoRound on given tokens, all decoder linears at one width. Runs in AutoRound's environment, without qplan.

Takes a JSON file: ``model`` (folder), ``tokens`` (``.npy``, int64 ``[rows, seq_len]``), ``bits``, ``block``, ``steps``,
``batch`` (rows), ``best`` (whether to use its extended algorithm), ``out``: safetensors file, of every linear the
weights that its integers stand for, and, under ``scale:`` and ``zero:`` with its name, its grid (``[out, blocks]``).
"""

from __future__ import annotations

import time

import torch
from auto_round import AutoRound
from torch import nn
from transformers import AutoTokenizer

from reports.rounding.peer_job import grid_of, leave, read_job


def main() -> None:
    """Quantize, write the weights, and print the processor seconds."""
    job, model, tokens = read_job(__doc__)
    rows = torch.from_numpy(tokens)
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(job["batch"])]
    start = time.process_time()
    quantized, _ = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job["model"]),
        dataset=batches,
        bits=job["bits"],
        group_size=job["block"],
        sym=False,
        iters=job["steps"],
        nsamples=len(rows),
        seqlen=rows.shape[1],
        batch_size=job["batch"],
        enable_alg_ext=job["best"],
        # float32 throughout, as qplan fits and as both are judged
        amp=False,
        enable_torch_compile=False,
        device_map="cpu",
    ).quantize()
    seconds = time.process_time() - start
    head = quantized.get_output_embeddings()
    found: dict[str, torch.Tensor] = {}
    for name, module in quantized.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            weight = module.weight
            scale, zero = (torch.as_tensor(getattr(module, part)).flatten() for part in ("scale", "zp"))
            scale, zero = (part.expand(len(scale)).view(len(weight), -1) for part in (scale, zero))
            found |= grid_of(name, weight, scale, zero)
    leave(job, found, seconds)


if __name__ == "__main__":
    main()
