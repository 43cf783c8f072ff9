"""Models as people's tools leave them: what they are is seen, and they are planned and built like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qplan import Engine
from qplan.mnn.preflight.tokenizer_file import read_tokenizer
from qplan.run.folder import RunFolder
from qplan.run.plan_folder import PlanFolder
from qplan.run.table import SensitivityTable
from qplan.run.verification import Verification
from tests.support.command import qplan, succeed
from tests.support.mnn_models import VOCABULARY
from tests.support.sentencepiece_files import save_sentencepiece
from tests.support.tiny_models import make_tokenizer, words

QUICK = ("--mode", "gradient", "--fold", "off", "--rounding", "rtn", "--formats", "fp16,int8")
NAME = "[my] models 模型 (v1)"
TEMPLATES = [
    {"name": "tool_use", "template": "{{ tools }}"},
    {"name": "default", "template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"},
]
SHORT = ("--calib", "text.txt", "--samples", "2", "--seq-len", "64", "--run", "run")


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Untied, with a head that equals the embedding, and a second layer as block expansion inserts it."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    return model


def test_an_equal_head_an_empty_layer_and_old_tokenizer_files_are_planned_and_proved(
    tmp_path: Path, model: LlamaForCausalLM
) -> None:
    folder = tmp_path / NAME
    model.save_pretrained(folder, max_shard_size="200KB")
    save_sentencepiece(folder, 313, chat_template=TEMPLATES)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (tmp_path / "text.txt").write_text(words(2000))
    # rounding as it is by default, where zeros meet moments
    succeed("analyze", NAME, "--mode", "gradient", "--fold", "off", "--formats", "fp16,int8", *SHORT, folder=tmp_path)
    run = RunFolder(tmp_path / "run")
    table = SensitivityTable.read(run.sensitivity)
    assert table.model.tensors[-1].tied
    assert {told.code for told in table.notes} >= {"tied-by-values", "tensors-without-loss"}
    succeed("emit", "--run", "run", "--budget", "int8", "--tokens", "64", "--repair", "0", folder=tmp_path)
    verification = Verification.read(PlanFolder(run.budget("int8")).verification)
    assert verification.passed
    assert {check.promise.code for check in verification.checks} >= {"plan-emulation", "same-tokens"}
    built = verification.model("plan")
    assert built is not None
    assert built.emulated_stderr_nats["low"] > 0
    mnn = PlanFolder(run.budget("int8")).model
    ids = read_tokenizer(mnn / "tokenizer.mtok")
    assert (ids.stops, ids.prefix) == ((2, 5), (1,))
    with Engine(mnn) as engine:
        assert engine.encode("word")[0] == 1
        assert len(list(engine.generate("word", max_tokens=2))) <= 2


def test_a_tokenizer_that_outgrew_its_model_is_refused_by_analyze(tmp_path: Path, model: LlamaForCausalLM) -> None:
    model.save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(words(2000))
    done = qplan("analyze", "model", *QUICK, *SHORT, folder=tmp_path)
    assert done.returncode == 2
    assert "'<tool_call>' (320)" in " ".join(done.stderr.split())
    assert not (tmp_path / "run" / "sensitivity.parquet").exists()
