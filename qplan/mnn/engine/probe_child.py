"""Run in a child process, by any Python that has MNN and numpy: one model, one sequence, prefill and token by token.

Arguments: ``config.json``, settings as JSON, token ids as JSON, where the logits go (``.npy``, ``[paths, tokens,
vocab]``), and the paths: ``prefill``, ``decode`` or both, with a comma.
Simpler than ``session_child.py`` on purpose: it runs on every release that has ``MNN.llm``, whatever else that lacks.
"""

import faulthandler
import gc
import importlib
import json
import os
import sys
from typing import Any

import numpy as np


def forward(llm: Any, tokens: "list[int]") -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":  # noqa: ANN401
    """Logits ``[tokens, vocabulary]``; a copy, so that no engine variable outlives the call."""
    var = llm.forward(tokens)
    values = np.array(var.read(), dtype=np.float32)
    del var
    return values.reshape(-1, values.shape[-1])


def main() -> None:
    """Load, run, write."""
    config, settings, ids, target = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
    paths = sys.argv[5].split(",")
    faulthandler.enable()  # a native crash leaves its Python line as last words
    llm = importlib.import_module("MNN.llm").create(config)
    llm.set_config(settings | {"all_logits": True, "sampler_type": "greedy", "use_template": False})
    llm.load()

    # token by token first: reset() leaves the state of convolutions over time, which one pass does not look at
    found = {}
    if "decode" in paths:
        found["decode"] = np.concatenate([forward(llm, [token]) for token in ids])
        llm.reset()
    if "prefill" in paths:
        found["prefill"] = forward(llm, ids)[-len(ids) :]
    np.save(target, np.stack([found[path] for path in paths]))
    del llm
    gc.collect()
    sys.stdout.flush()
    os._exit(0)  # some releases crash when the interpreter ends, after all is done


if __name__ == "__main__":
    main()
