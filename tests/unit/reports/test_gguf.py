"""The comparison with GGUF: what llama.cpp is given, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qplan.errors import InputError
from qplan.model.load import LoadedModel
from reports.gguf.llama import whole_or_not
from reports.gguf.page import write_page
from reports.gguf.tensors import write_tensors


def plan(kind: str, kl_nats: float) -> dict[str, Any]:
    return {"type": kind, "file_bytes": 900, "kl_nats": kl_nats, "uniform": {"int4": [950, 0.03]}}


def file(kind: str, size: int, kl_nats: float) -> dict[str, Any]:
    return {"type": kind, "file_bytes": size, "kl_nats": kl_nats, "top1": 0.9}


RESULT: dict[str, Any] = {
    "parameters": 1000,
    "rows": [256, 704],
    "calibration": "valid.txt",
    "judged": {"text": "test.txt", "tokens": 4096},
    "engine": "3.6.1",
    "library": "llama==1",
    "files": [
        file("F32", 4000, 1e-7),
        file("Q6_K", 1500, 1e-3),
        file("Q4_0", 1000, 1e-2),
    ],
    "plans": [plan("Q4_0", 5e-3), plan("Q6_K", 4e-3)],
}


def test_the_page_says_where_each_loses_less(tmp_path: Path) -> None:
    write_page({"tiny": RESULT}, tmp_path)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    # smaller files first
    assert "| Q4_0 | 1,000 | 1.00e-02 | 90.0% | 900 | 5.00e-03 | 0.50 |\n| Q6_K |" in page
    assert "| 4.00e-03 | **4.00** |" in page
    assert "llama.cpp loses less at Q6_K (**bold**), of the 2 of 2 sizes that were planned." in page
    assert "Rows of 704 weights are no multiple of 256." in page
    assert (tmp_path / "losses.png").stat().st_size > 1000


def test_a_page_without_plans_has_no_figure(tmp_path: Path) -> None:
    write_page({"tiny": RESULT | {"plans": []}}, tmp_path)
    assert "losses.png" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "losses.png").exists()


def test_a_llama_s_heads_are_turned_and_a_qwen_s_are_not(
    llama: LoadedModel, qwen2: LoadedModel, tmp_path: Path
) -> None:
    for loaded in (llama, qwen2):
        model: Any = loaded.model
        weight, heads = model.model.layers[0].self_attn.q_proj.weight.detach().numpy(), model.config.num_attention_heads
        width = len(weight) // heads
        with np.load(write_tensors(loaded, tmp_path)) as found:
            turned = found["blk.0.attn_q.weight"]
            assert ("output.weight" in found.files) is (loaded is llama)
        values = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
        assert (values["heads"], values["vocabulary"]) == (heads, loaded.card.vocabulary)
        # neighbors in llama.cpp are half a head apart in transformers
        order = [
            head * width + (place // 2 + (place % 2) * width // 2 if loaded is llama else place)
            for head in range(heads)
            for place in range(width)
        ]
        assert np.array_equal(turned, weight[order])


def test_an_unknown_architecture(tiny_models: dict[str, LoadedModel], tmp_path: Path) -> None:
    other = next(loaded for name, loaded in tiny_models.items() if name not in {"qwen2", "llama"})
    with pytest.raises(InputError, match="known to this report are qwen2, llama"):
        write_tensors(other, tmp_path)


def test_what_fails_half_way_is_not_taken_for_a_file(tmp_path: Path) -> None:
    def fails(part: Path) -> None:
        part.write_text("half")
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - any
        whole_or_not(tmp_path / "Q4_0.gguf", fails)
    assert not (tmp_path / "Q4_0.gguf").exists()
    whole_or_not(tmp_path / "Q4_0.gguf", Path.touch)
    assert [path.name for path in tmp_path.iterdir()] == ["Q4_0.gguf"]
