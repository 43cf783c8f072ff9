"""A model folder as the checks see it: settings, sizes of files, the graph, its head; read once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from qplan.artifact import read_bounded
from qplan.errors import InputError
from qplan.mnn.engines import FEEDS_LOGITS_INDEX, EngineVersion
from qplan.mnn.files import (
    CONFIG_FILE,
    EMBEDDING_FILE,
    EMBEDDING_KEY,
    GRAPH_FILE,
    LLM_CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHT_FILE,
)
from qplan.mnn.graph.binary import BinaryGraph, GraphNode, read_binary_graph
from qplan.mnn.graph.linear import Linear
from qplan.mnn.graph.tie import TIE_KEY, TieRecord, read_tie
from qplan.mnn.preflight.finding import COPY_AGAIN, EXPORT_AGAIN, REFUSED, Finding, error, warning
from qplan.mnn.preflight.strict_json import parse_strict
from qplan.mnn.preflight.tokenizer_file import TokenizerFile, read_tokenizer

Settings = dict[str, Any]

_MOST_NAME_BYTES, _MOST_PATH_BYTES = 255, 2048
"""What every file system takes, with room for the path of the folder itself."""


def can_be_a_name(value: object) -> TypeGuard[str]:
    """Whether a value from a folder that nobody vouches for can name a file; the system refuses to look for others."""
    if not isinstance(value, str) or "\0" in value:
        return False
    data = value.encode("utf-8", "surrogatepass")
    return len(data) <= _MOST_PATH_BYTES and all(len(part) <= _MOST_NAME_BYTES for part in data.split(b"/"))


LOGITS = "logits"
ENGINE_INPUTS = ("input_ids", "attention_mask", "position_ids", "logits_index")
"""What the engine feeds into the graph."""

_MOST_JSON_BYTES = 16 << 20
"""Settings hold a few hundred bytes, and a chat template of some ten thousand."""

_WORD = 4
"""Bytes: a flatbuffer's length is a multiple of its largest alignment, which is 4 or 8 in a graph."""

DEEPSTACK, PLE, TALKER = "has_deepstack", "ple_embed_file", "has_talker"
"""Settings that make the engine feed or ask for more tensors."""


@dataclass
class ModelFolder:
    """What could be read from a folder; what could not be read is a finding."""

    folder: Path
    engine: EngineVersion
    settings: Settings = field(default_factory=dict)
    """``config.json`` with ``llm_config.json`` over it, as the engine merges them."""
    graph: BinaryGraph | None = None
    tokenizer: TokenizerFile | None = None
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, engine: EngineVersion) -> ModelFolder:
        """Read what is there."""
        model = cls(folder, engine)
        config = model._json(CONFIG_FILE)  # noqa: SLF001 - its own constructor
        name = config.get("llm_config", LLM_CONFIG_FILE)
        model.settings = config | model._json(name if can_be_a_name(name) else LLM_CONFIG_FILE)  # noqa: SLF001
        model._files()  # noqa: SLF001
        return model

    def path(self, key: str, default: str) -> Path:
        """Where the engine looks for a file, by its key in the settings."""
        value, base = self.settings.get(key, default), self.settings.get("base_dir")
        root = Path(base) if can_be_a_name(base) else self.folder
        return root / (value if can_be_a_name(value) else default)

    @property
    def weight_path(self) -> Path:
        """The weight file."""
        return self.path("llm_weight", WEIGHT_FILE)

    @property
    def weight_bytes(self) -> int:
        """Its size; 0 if it is not there."""
        path = self.weight_path
        return path.stat().st_size if path.is_file() else 0

    @property
    def file_bytes(self) -> int:
        """Size of graph, weights and embedding, as far as they are there."""
        parts = (("llm_model", GRAPH_FILE), ("llm_weight", WEIGHT_FILE), (EMBEDDING_KEY, EMBEDDING_FILE))
        paths = {self.path(key, default) for key, default in parts}
        return sum(path.stat().st_size for path in paths if path.is_file())

    def whole(self, key: str) -> int | None:
        """A setting that is a whole number; None if it is something else."""
        value = self.settings.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def tied(self) -> bool:
        """Whether tokens are looked up in the head's bytes."""
        return bool(
            self.settings.get(TIE_KEY, []) != []
        )  # the engine takes an empty list for none, and null for a record

    @property
    def tie(self) -> TieRecord | None:
        """How tokens are looked up there; None if they are not, or if the record cannot be read."""
        try:
            return read_tie(self.settings)
        except InputError:
            return None

    @property
    def embedding_apart(self) -> bool:
        """Whether tokens are looked up in a file of their own: without a record, or with one that starts at byte 0."""
        tie = self.tie
        return not self.tied or (tie is not None and tie.weight_offset == 0)

    @property
    def fed_inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the engine feeds."""
        fed = ENGINE_INPUTS if self.engine >= FEEDS_LOGITS_INDEX else ENGINE_INPUTS[:3]
        return fed + tuple(self.optional_inputs.values())

    @property
    def optional_inputs(self) -> dict[str, str]:
        """What the engine feeds besides, by the setting that makes it; measured, engine 3.6.1.

        A switch counts if it is ``true`` itself, a file's name as soon as its key is there.
        """
        inputs = {DEEPSTACK: "deepstack_embeds"} if self.settings.get(DEEPSTACK) is True else {}
        return inputs | ({PLE: "ple_embeddings"} if PLE in self.settings else {})

    def live_nodes(self) -> tuple[GraphNode, ...]:
        """Ops of the main graph that the logits depend on, in graph order; all of them if there are no logits."""
        graph = self.graph
        if graph is None:
            return ()
        producer = {index: node for node in graph.nodes for index in node.outputs}
        wanted = [index for index, name in enumerate(graph.tensor_names) if name == LOGITS]
        if not wanted:
            return graph.nodes
        seen: set[int] = set()
        live: set[int] = set()
        while wanted:
            index = wanted.pop()
            node = producer.get(index)
            if index in seen or node is None:
                continue
            seen.add(index)
            if id(node) not in live:
                live.add(id(node))
                wanted.extend(node.inputs)
        return tuple(node for node in graph.nodes if id(node) in live)

    def linears(self) -> Iterator[Linear]:
        """Every matrix product that has its weights in the weight file, plain or not."""
        for node in self.graph.all_nodes if self.graph else ():
            yield from (linear for linear in node.convolutions if linear.external)

    def head(self) -> Linear | None:
        """The matrix product that makes the logits: the last one before them."""
        for node in reversed(self.live_nodes()):
            if node.convolutions:
                return node.convolutions[-1]
        return None

    def _json(self, name: str) -> Settings:
        path = self.folder / name
        effect = "the engine takes its defaults (4096 wide, 32 layers) and crashes or outputs garbage"
        if self._lies_outside(path, name):
            return {}
        if not path.exists():
            self.findings.append(error("missing-file", name, f"there is no {name}", effect, COPY_AGAIN))
            return {}
        try:
            found = parse_strict(read_bounded(path, _MOST_JSON_BYTES))
        except InputError as problem:
            self.findings.append(error("bad-json", name, str(problem), effect, EXPORT_AGAIN))
            return {}
        if isinstance(found, dict):
            return found
        what = f"it holds a JSON {type(found).__name__}, expected an object"
        self.findings.append(error("bad-json", name, what, effect, EXPORT_AGAIN))
        return {}

    def _lies_outside(self, path: Path, name: str) -> bool:
        """Whether settings send the engine to a file of somebody else's; a finding if so."""
        # absolute: everything, even what begins with "..", counts as relative to "."
        if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.folder)):  # noqa: PTH100 - links stay as they are
            return False
        what = f"the settings name {name!r}, which is not in the folder"
        effect = "the engine would read any file of this machine that the folder's author chose"
        self.findings.append(error("outside-folder", name, what, effect, EXPORT_AGAIN))
        return True

    def _is_there(self, path: Path) -> bool:
        """Whether a file can be read, and may be; a finding if not."""
        if self._lies_outside(path, str(path)):
            return False
        if not path.exists():
            self.findings.append(error("missing-file", path.name, f"there is no {path.name}", REFUSED, COPY_AGAIN))
        elif not path.is_file():
            what = f"{path.name} is no regular file"
            self.findings.append(error("not-a-file", path.name, what, REFUSED, COPY_AGAIN))
        return path.is_file()

    def _graph_length(self, path: Path) -> None:
        """Graphs are written in whole words; the engine itself does not miss the last bytes, which are padding."""
        size = path.stat().st_size
        if size % _WORD:
            what = f"{size:,} bytes, which is no multiple of {_WORD}: bytes were cut off or added"
            effect = "it runs; the file is not the one that was written"
            self.findings.append(warning("graph-length", path.name, what, effect, COPY_AGAIN))

    def _files(self) -> None:
        graph = self.path("llm_model", GRAPH_FILE)
        needed = [graph, self.weight_path, self.path("tokenizer_file", TOKENIZER_FILE)]
        if self.embedding_apart:
            needed.append(self.path(EMBEDDING_KEY, EMBEDDING_FILE))
        for kind in ("visual", "audio"):
            beside = self.path(f"{kind}_model", f"{kind}.mnn")
            if not self.settings.get(f"is_{kind}") or self._lies_outside(beside, str(beside)):
                continue
            if not beside.is_file():
                effect = f"texts run; {kind} input does not"
                self.findings.append(
                    warning("missing-file", beside.name, f"there is no {beside.name}", effect, COPY_AGAIN)
                )
        absent = [path for path in needed if not self._is_there(path)]
        if graph not in absent:
            try:
                self.graph = read_binary_graph(graph)
                self._graph_length(graph)
            except (InputError, RecursionError) as problem:
                self.findings.append(error("bad-graph", graph.name, str(problem), REFUSED, COPY_AGAIN))
        tokenizer = needed[2]
        if tokenizer not in absent:
            try:
                self.tokenizer = read_tokenizer(tokenizer)
            except InputError as problem:
                effect = "the engine does not load the model, or crashes reading past the file's end"
                self.findings.append(error("bad-tokenizer", tokenizer.name, str(problem), effect, COPY_AGAIN))
