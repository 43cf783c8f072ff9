"""Models whose weights stay in their files: every architecture computes the same to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qplan.errors import InputError
from qplan.folding.fold import fold, fold_sites, save_folded
from qplan.model.layerwise import WayThere, with_layer_read
from qplan.model.load import LoadedModel, load_model
from qplan.model.replace import with_weights
from qplan.model.streamed import Streamed, WeightSource
from qplan.sensitivity.kept_logits import kept_logits

IDS = torch.arange(3, 43).view(2, 20)


@pytest.fixture
def streamed(tiny: LoadedModel) -> LoadedModel:
    return load_model(str(tiny.folder), stream=True)


def test_a_streamed_model_is_the_same(tiny: LoadedModel, streamed: LoadedModel) -> None:
    assert streamed.card == tiny.card
    assert streamed.tied_by_values == tiny.tied_by_values
    assert (streamed.device, streamed.dtype) == (tiny.device, tiny.dtype)
    assert torch.equal(streamed.logits(IDS), tiny.logits(IDS))
    for spec in tiny.card.tensors:
        assert torch.equal(streamed.weight(spec.name), tiny.weight(spec.name))
        assert torch.equal(streamed.weight(spec.name, slice(3, 9)), tiny.weight(spec.name)[3:9])
        some = torch.tensor([2, 0, 0])
        assert torch.equal(streamed.weight_rows(spec.name, some), tiny.weight(spec.name)[some])


def test_no_matrix_is_held(streamed: LoadedModel) -> None:
    assert all(parameter.dim() == 1 for parameter in streamed.model.parameters())
    modules = [streamed.embedding, *(streamed.linear(spec.name) for spec in streamed.card.tensors)]
    assert all(isinstance(module, Streamed) for module in modules)


def test_a_layer_is_read_once_for_all_batches(model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    streamed, reads = load_model(str(model_folders["qwen2"]), stream=True), list[tuple[str, ...]]()
    read = WeightSource.read

    def counted(source: WeightSource) -> torch.Tensor:
        reads.append(source.keys)
        return read(source)

    monkeypatch.setattr(WeightSource, "read", counted)
    with kept_logits(streamed, IDS.repeat(3, 1).numpy()) as kept:
        assert len(reads) == len(set(reads)) == len(streamed.card.tensors)
        assert torch.equal(kept.of(slice(2, 4)), streamed.logits(IDS))
    reads.clear()
    way = WayThere(streamed, IDS.repeat(3, 1).split(1))
    with with_layer_read(streamed, 0):
        for number in range(6):
            way.run(0, number)
    layer = [spec for spec in streamed.card.tensors if spec.layer == 0]
    assert len(reads) == len(set(reads)) == len(layer)


def test_other_weights_go_in_and_out(tiny: LoadedModel, streamed: LoadedModel) -> None:
    names = [spec.name for spec in tiny.card.tensors][::3]
    before = streamed.logits(IDS)
    other = {name: torch.roll(tiny.weight(name), 1, 0) for name in names}
    with with_weights(tiny, other), with_weights(streamed, other):
        assert torch.equal(streamed.logits(IDS), tiny.logits(IDS))
        assert not torch.equal(streamed.logits(IDS), before)
    assert torch.equal(streamed.logits(IDS), before)


def test_a_folded_model_is_streamed_to_disk(tiny: LoadedModel, streamed: LoadedModel, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    scales = {site.name: torch.rand(site.channels, generator=generator) + 0.5 for site in fold_sites(tiny)}
    whole, parts = fold(tiny, scales), fold(streamed, scales)
    assert torch.equal(parts.logits(IDS), whole.logits(IDS))
    # the model that was folded is left alone
    assert torch.equal(streamed.logits(IDS), tiny.logits(IDS))
    save_folded(parts, tmp_path / "folded")
    again = load_model(str(tmp_path / "folded"), stream=False)
    assert torch.equal(again.logits(IDS), whole.logits(IDS))
    assert again.card.tensors == whole.card.tensors
    assert torch.equal(load_model(str(tmp_path / "folded"), stream=True).logits(IDS), whole.logits(IDS))


def _edited(folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop(QUERY), f"holds no {QUERY}"),
        (lambda tensors: tensors.pop(NORM), f"holds no {NORM}"),
        (lambda tensors: tensors[QUERY].view(-1)[7].fill_(torch.nan), f"{QUERY} holds 1 NaN or infinite"),
        (lambda tensors: tensors.update(more=torch.ones(3)), "hold more, which a Qwen2ForCausalLM has no use for"),
        (
            lambda tensors: tensors.update({"lm_head.weight": torch.ones(320, 64)}),
            "tie_word_embeddings is true, and the weight files hold a lm_head.weight of its own",
        ),
    ],
)
def test_what_is_wrong_with_a_checkpoint_shows_when_it_is_loaded(
    change: Callable[[dict[str, torch.Tensor]], None], told: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = _edited(model_folders["qwen2"], tmp_path / "model", change)
    with pytest.raises(InputError, match=told):
        load_model(str(folder), stream=True)


def test_half_precision_is_read_as_float32(model_folders: dict[str, Path], tmp_path: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items()}

    folder = _edited(model_folders["llama"], tmp_path / "model", halve)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    loaded = load_model(str(folder), stream=True)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.logits(IDS), load_model(str(folder), stream=False).logits(IDS))


def test_a_model_is_streamed_where_memory_is_short(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    need = 4 * tiny.card.parameters
    monkeypatch.setattr("qplan.model.load.free_memory", lambda: need - 1)
    assert load_model(str(tiny.folder)).streamed
    monkeypatch.setattr("qplan.model.load.free_memory", lambda: 2 * need)
    assert not load_model(str(tiny.folder)).streamed


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _under_the_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors.pop(EMBEDDING)


def _of_a_bare_decoder(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def _equal_in_another_type(tensors: dict[str, torch.Tensor]) -> None:
    tensors[EMBEDDING] = tensors[EMBEDDING].bfloat16()
    tensors[HEAD] = tensors[EMBEDDING].float()


@pytest.mark.parametrize("change", [_under_the_head, _of_a_bare_decoder, _equal_in_another_type])
def test_matrices_are_found_where_transformers_finds_them(
    change: Callable[[dict[str, torch.Tensor]], None], model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = _edited(model_folders["qwen2"], tmp_path / "edited", change)
    if change is _equal_in_another_type:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    whole, streamed = (load_model(str(folder), stream=stream) for stream in (False, True))
    assert streamed.card == whole.card
    assert streamed.card.tensors[-1].tied
    assert torch.equal(streamed.logits(IDS), whole.logits(IDS))
    save_folded(streamed, tmp_path / "saved")
    assert torch.equal(load_model(str(tmp_path / "saved"), stream=False).logits(IDS), whole.logits(IDS))
