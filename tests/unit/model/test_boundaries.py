"""What lies between layers comes back as it was, from memory and from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qplan.errors import DamagedArtifactError
from qplan.model.boundaries import Boundaries


@pytest.fixture(params=["memory", "disk"])
def between(request: pytest.FixtureRequest, tmp_path: Path) -> Boundaries:
    return Boundaries(tmp_path / "between" if request.param == "disk" else None)


def test_tensors_and_tuples_come_back(between: Boundaries) -> None:
    hidden, other = torch.randn(2, 3, 4), torch.randn(5)
    between.put(0, 0, hidden)
    between.put(0, 1, (hidden, None, other))
    assert torch.equal(between.get(0, 0), hidden)
    first, nothing, last = between.get(0, 1)
    assert torch.equal(first, hidden)
    assert nothing is None
    assert torch.equal(last, other)
    assert between.has(0, range(2))
    assert not between.has(0, range(3))
    between.drop(0, [1, 7])
    assert not between.has(0, [1])
    assert between.has(0, [0])


def test_the_slopes_of_the_last_layer_that_was_finished_are_kept(between: Boundaries) -> None:
    assert between.reached(3) is None
    between.put_slopes(3, [torch.ones(2), torch.zeros(1)])
    assert between.reached(3) == 3
    between.put_slopes(2, [torch.full((2,), 5.0), torch.ones(1)])
    assert between.reached(3) == 2
    assert [slope.tolist() for slope in between.slopes(2)] == [[5.0, 5.0], [1.0]]


def test_damage_on_disk_is_noticed(tmp_path: Path) -> None:
    between = Boundaries(tmp_path)
    between.put(1, 0, torch.randn(64))
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedArtifactError):
        Boundaries(tmp_path).get(1, 0)
