"""A tiny exported model and the same numbers in torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from qplan.formats import FP16, INT8, QuantFormat
from qplan.mnn.build.exporter import export
from qplan.mnn.build.exporter_source import ExportOptions
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.graph.linear import Linear
from qplan.mnn.graph.tie import TieForm
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import load_model
from qplan.rounding import StoredTensor, rtn
from qplan.tensors import TensorSpec

TEXT = ["the quick brown fox jumps over the lazy dog", "a model of language is a model of the world", "0123456789 ()[]"]
VOCABULARY = 320


@dataclass(frozen=True)
class ExportedModel:
    """A Hugging Face folder, its export, and the same numbers in torch."""

    folder: Path
    skeleton: Skeleton

    def load(self) -> Any:
        """The torch model in fp32."""
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def specs(self) -> tuple[TensorSpec, ...]:
        """What is planned of it."""
        return load_model(str(self.folder)).card.tensors

    def build(
        self,
        tensors: Mapping[str, StoredTensor],
        out: Path,
        *,
        tie_form: TieForm = "dict",
        runtime: RuntimeConfig | None = None,
        replace: bool = False,
    ) -> tuple[Linear, ...]:
        """Build a model of stored tensors, by op name."""
        by_name = {spec.name: tensors[spec.op_name] for spec in self.specs if spec.op_name in tensors}
        return build_model(
            self.skeleton,
            self.specs,
            {name: tensor.format for name, tensor in by_name.items()},
            lambda name, fmt: by_name[name],
            out,
            tie_form=tie_form,
            runtime=runtime,
            replace=replace,
        )

    def tensors(self, formats: dict[str, QuantFormat]) -> dict[str, StoredTensor]:
        """Weights rounded to nearest, by op name."""
        model = self.load()
        return {name: rtn(linear(model, name).weight.data, fmt) for name, fmt in formats.items()}

    def formats(self, fmt: QuantFormat, head: QuantFormat | None = None) -> dict[str, QuantFormat]:
        """One format for all ops (and one for the head), with blocks that divide."""
        return {
            op.name: (head if head is not None and "lm_head" in op.name else fmt).resolve(op.in_features)
            for op in self.skeleton.ops
        }

    def mixed(self, seed: int) -> dict[str, QuantFormat]:
        """A format drawn for every op; a tied head gets one that the lookup can read."""
        draw = np.random.default_rng(seed)
        names = ["fp16", "int8", "int4", "int4-sym", "int3-b32", "int6-s32", "int2-b4", "int5-b0", "int8-b0-sym"]
        formats = {
            op.name: QuantFormat.parse(str(draw.choice(names))).resolve(op.in_features) for op in self.skeleton.ops
        }
        if self.skeleton.tied_op is not None:
            formats[self.skeleton.tied_op] = (FP16, INT8, QuantFormat(4, 32))[seed % 3]
        return formats

    def reference(self, tensors: dict[str, StoredTensor], token_ids: list[int]) -> NDArray[np.float32]:
        """Logits ``[tokens, vocabulary]`` of the torch model that holds the stored values."""
        model = self.load()
        if not self.skeleton.tied:
            table = model.get_input_embeddings().weight
            table.data = table.data.to(torch.bfloat16).to(torch.float32)
        for name, tensor in tensors.items():
            linear(model, name).weight.data.copy_(tensor.dequantize())
        with torch.no_grad():
            logits: NDArray[np.float32] = model(torch.tensor([token_ids])).logits[0].numpy()
        return logits


def linear(model: Any, op_name: str) -> Any:
    """The torch module behind an op's name."""
    path = op_name.strip("/").removesuffix("/Linear").replace("/", ".")
    return model.get_submodule("lm_head" if path.endswith("lm_head") else f"model.{path}")


def save(model: Any, folder: Path) -> Path:
    """Write a Hugging Face folder with a byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    end = "<|endoftext|>"
    # a class of transformers' own would add a token for what is unknown, which the model lacks
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end, unk_token=end)
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    if model.config.model_type == "qwen2":
        # transformers splits texts as its class for Qwen2 does, whatever the file says: make the file say it too
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def export_with_config(model_dir: Path, out: Path, quant_config: Path) -> Path:
    """Export with llmexport's own quantizer and a ``quant_config.json``; 8 bits for ops that it does not name."""
    return export(model_dir, out, ExportOptions(8, 64, quant_config=quant_config.resolve()))


class EmulatedOp:
    """A tiny model in torch in which one op is quantized."""

    def __init__(self, exported: ExportedModel, op_name: str, fmt: QuantFormat) -> None:
        self.tensors = exported.tensors(exported.formats(FP16) | {op_name: fmt})
        self.model = exported.load()
        for name, tensor in self.tensors.items():
            linear(self.model, name).weight.data.copy_(tensor.dequantize())
        self.op = linear(self.model, op_name)

    def logits(self, token_ids: list[int], seen: Callable[[torch.Tensor], torch.Tensor]) -> NDArray[np.float32]:
        """NDArray[np.float32] where the op sees its input through a function."""

        def before(module: object, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (seen(args[0]),)

        hook = self.op.register_forward_pre_hook(before)
        with torch.no_grad():
            logits: NDArray[np.float32] = self.model(torch.tensor([token_ids])).logits[0].numpy()
        hook.remove()
        return logits
