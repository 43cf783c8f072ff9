"""Runs in llama.cpp's own environment: a GGUF file from weights, its quantized copies, and their logits.

``native.py convert WEIGHTS OUT``: an ``.npz`` of float32 tensors under llama.cpp's names, beside ``model.json``,
becomes a GGUF file in F32. ``native.py tensors MODEL``: bytes of its tensors. ``native.py load MODEL``: the growth of
resident memory.
``native.py logits MODEL TOKENS OUT``: float32 logits ``[rows, seq_len, vocabulary]`` of int32 rows of tokens.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from llama_cpp_py_sync._cffi_bindings import ffi

LIBRARY = "xllamacpp.abi3.so"


def open_library() -> Any:  # noqa: ANN401 - cffi has no types
    """llama.cpp, if it has the structures that are declared: a wrong default shows that it has others.

    Raises:
        SystemExit: it is of another build.
    """
    found = find_spec("xllamacpp")
    if found is None or found.origin is None:
        sys.exit("xllamacpp is not installed")
    library = ffi.dlopen(str(Path(found.origin).with_name(LIBRARY)))
    context = library.llama_context_default_params()
    seen = context.n_batch, context.n_seq_max, context.type_k
    if seen != (2048, 1, 1):
        sys.exit(f"llama.cpp's defaults read as {seen}: its build and its declarations do not belong together")
    library.llama_backend_init()
    return library


def convert(weights: str, out: str) -> None:
    """Write a GGUF file; without a tokenizer, since tokens are given as ids."""
    values = json.loads(Path(weights).with_name("model.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(out, values["architecture"])
    writer.add_context_length(values["context"])
    writer.add_embedding_length(values["hidden"])
    writer.add_block_count(values["layers"])
    writer.add_feed_forward_length(values["inner"])
    writer.add_head_count(values["heads"])
    writer.add_head_count_kv(values["kv_heads"])
    writer.add_rope_freq_base(values["rope_base"])
    writer.add_rope_dimension_count(values["head_width"])
    writer.add_layer_norm_rms_eps(values["norm_eps"])
    writer.add_vocab_size(values["vocabulary"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    with np.load(weights) as tensors:
        for name in tensors.files:
            writer.add_tensor(name, tensors[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(path: str) -> None:
    """Print the bytes of a file's tensors."""
    print(sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors))


def load(model: str) -> None:
    """Print how much resident memory grows by loading a file, not mapped."""
    library = open_library()
    options = library.llama_model_default_params()
    options.load_mode = library.LLAMA_LOAD_MODE_NONE
    before = resident_bytes()
    if library.llama_model_load_from_file(model.encode(), options) == ffi.NULL:
        sys.exit(f"llama.cpp does not load {model}")
    print(resident_bytes() - before)


def resident_bytes() -> int:
    """Of this process, on Linux."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def logits(model: str, tokens: str, out: str) -> None:
    """Compute every position's logits, a row in one pass, one thread."""
    library = open_library()
    loaded = library.llama_model_load_from_file(model.encode(), library.llama_model_default_params())
    if loaded == ffi.NULL:
        sys.exit(f"llama.cpp does not load {model}")
    rows = np.load(tokens)
    options = library.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = rows.shape[1]
    options.n_threads = options.n_threads_batch = 1
    context = library.llama_init_from_model(loaded, options)
    width = library.llama_vocab_n_tokens(library.llama_model_get_vocab(loaded))
    batch = library.llama_batch_init(rows.shape[1], 0, 1)
    found = np.lib.format.open_memmap(out, "w+", np.float32, (*rows.shape, width))
    for number, row in enumerate(rows):
        library.llama_memory_clear(library.llama_get_memory(context), True)  # noqa: FBT003 - the data too
        batch.n_tokens = len(row)
        for place, token in enumerate(row):
            batch.token[place], batch.pos[place] = int(token), place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        if library.llama_decode(context, batch) != 0:
            sys.exit(f"llama.cpp fails on row {number} with {model}")
        values = ffi.buffer(library.llama_get_logits(context), 4 * len(row) * width)
        found[number] = np.frombuffer(values, np.float32).reshape(len(row), width)
    found.flush()


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {"convert": convert, "tensors": tensors, "load": load, "logits": logits}
    commands[sys.argv[1]](*sys.argv[2:])
