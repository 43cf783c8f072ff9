"""Names of the files of an MNN model folder, as the engine expects them where ``config.json`` names no others."""

from __future__ import annotations

CONFIG_FILE = "config.json"
"""How to run the model, and where its other files are."""

LLM_CONFIG_FILE = "llm_config.json"
"""What the model is."""

CONTEXT_KEY = "max_position_embeddings"
"""Key of ``llm_config.json``: longest sequence in tokens that the model is good for. qplan writes it and `qplan.Engine`
holds to it; MNN's engine doesn't know it."""

GRAPH_FILE = "llm.mnn"
GRAPH_JSON_FILE = "llm.mnn.json"
"""The same graph as JSON, which exporters leave beside it; the engine does not read it."""

WEIGHT_FILE = "llm.mnn.weight"
EMBEDDING_FILE = "embeddings_bf16.bin"
"""The input embedding; only there if it is not tied to the head."""
EMBEDDING_FILES = {16: EMBEDDING_FILE, 8: "embeddings_int8.bin", 4: "embeddings_int4.bin"}
"""Its names by width, as the exporter has them."""
EMBEDDING_KEY = "embedding_file"
"""Key of ``config.json``: where it is, if not in `EMBEDDING_FILE`."""

EXPORT_ARGS_FILE = "export_args.json"
"""The arguments of an export, with paths of the machine that ran it: not for those who get the model."""
CHECKSUMS_FILE = "checksums.json"
"""What qplan leaves beside a model that it builds: sizes and hashes of the files; the engine does not read it."""

TOKENIZER_FILE = "tokenizer.txt"
"""What the engine looks for by default; today's exporter writes another file and names it in the settings."""
