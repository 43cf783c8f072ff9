"""Arrays on disk, read with numpy as torch wrote them, and the other way round."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qplan.artifact import SEAL
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.run.moments import StoredMoments, write_matrix
from qplan.run.rounded import RoundedArrays, RoundedTensors
from qplan.run.safetensors_file import SafetensorsFile, write_safetensors
from qplan.scratch import remove_leftovers
from tests.support.ended_early import forked


def written(path: Path) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    parts = {
        "double": torch.randn(5, 3, 2, generator=generator, dtype=torch.float64),
        "float": torch.randn(7, 4, generator=generator),
        "half": torch.randn(7, 4, generator=generator).half(),
        "brain": torch.randn(7, 4, generator=generator).bfloat16(),
        "codes": torch.randint(0, 256, (9, 6), generator=generator, dtype=torch.uint8),
        "one": torch.tensor(2.5),
    }
    save_file(parts, path, {"model": "a"})
    return parts


@pytest.mark.parametrize("rows", [slice(None), slice(2, 4), slice(3, None), slice(-2, None), slice(4, 2), slice(0, 99)])
def test_rows_are_those_that_torch_wrote(tmp_path: Path, rows: slice) -> None:
    parts = written(tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.metadata == {"model": "a"}
    assert file.shapes == {name: tuple(part.shape) for name, part in parts.items()}
    for name, part in parts.items():
        if part.dim():
            expected = part[rows].float().numpy() if name == "brain" else part[rows].numpy()
            found = file.read(name, rows)
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
            assert found.flags.writeable
    assert file.read("one") == 2.5


def test_torch_reads_what_numpy_wrote_and_the_file_is_the_same(tmp_path: Path) -> None:
    parts = {name: part for name, part in written(tmp_path / "a.safetensors").items() if name != "brain"}
    write_safetensors(tmp_path / "c.safetensors", {name: part.numpy() for name, part in parts.items()})
    with safe_open(tmp_path / "c.safetensors", "np") as stored:
        seal = stored.metadata()
    assert set(seal) == {SEAL}
    save_file(parts, tmp_path / "b.safetensors", seal)
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = load_file(tmp_path / "c.safetensors")
    assert all(torch.equal(found[name], part) for name, part in parts.items())


def test_a_damaged_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    written(path)
    whole = path.read_bytes()
    with pytest.raises(InputError, match=r"a.safetensors holds no array 'x'; restore the file, or remove it"):
        SafetensorsFile(path).read("x")
    path.write_bytes(whole[:-8])
    last = max(SafetensorsFile(path).shapes, key=lambda name: SafetensorsFile(path)._layout[0][name]["data_offsets"])
    with pytest.raises(InputError, match=f"was cut off in {last}; restore it, or remove it"):
        SafetensorsFile(path).read(last)
    path.write_bytes(whole[:20])
    with pytest.raises(InputError, match="is not a whole safetensors file; restore it, or remove it"):
        _ = SafetensorsFile(path).shapes


def test_a_type_that_is_not_known_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.int64)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="holds a as I64, which qplan does not read"):
        SafetensorsFile(tmp_path / "a.safetensors").read("a")


@pytest.mark.parametrize("fmt", [QuantFormat(4), QuantFormat(4, symmetric=True)])
def test_rounded_tensors_of_other_inputs_count_as_absent(tmp_path: Path, fmt: QuantFormat) -> None:
    kept = RoundedTensors(tmp_path, {"model": "a"})
    scale = np.ones((6, 2), np.float32)
    arrays = RoundedArrays(np.arange(48, dtype=np.uint8).reshape(6, 8), scale, None if fmt.symmetric else -scale)
    kept.write("t", fmt, arrays)
    some = kept.read("t", fmt, slice(1, 3))
    assert some is not None
    np.testing.assert_array_equal(some.codes, arrays.codes[1:3])
    assert (some.zero is None) == fmt.symmetric
    assert kept.holds("t", fmt)
    assert not RoundedTensors(tmp_path, {"model": "b"}).holds("t", fmt)
    assert kept.read("t", QuantFormat(8)) is None


def test_moments_without_an_index_are_not_whole(tmp_path: Path) -> None:
    inputs = {"model": "a", "tokens": "b"}
    write_matrix(tmp_path, "k", np.eye(3, dtype=np.float32))
    assert StoredMoments.open(tmp_path, inputs) is None
    StoredMoments(tmp_path, {"q": "k", "k": "k"}, {"q": 7, "k": 7}).write_index(inputs)
    found = StoredMoments.open(tmp_path, inputs)
    assert found is not None
    np.testing.assert_array_equal(found.read("q"), np.eye(3))
    assert StoredMoments.open(tmp_path, inputs | {"tokens": "c"}) is None


def test_what_the_library_leaves_of_a_killed_process_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_arrays: object, path: Path, _texts: object) -> None:
        path.with_name(".tmpAbC123").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("safetensors.numpy.save_file", killed)
    run = tmp_path / "run"
    ended = forked(lambda: write_safetensors(run / "one.safetensors", {"one": np.ones(3)}), tmp_path / "told.txt")
    assert ended == -signal.SIGKILL
    assert list(run.rglob(".tmp*"))
    remove_leftovers(run)
    assert not list(run.iterdir())
