from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.cost.expected import Expected, ExpectedStage
from qplan.cost.work import REFERENCE
from qplan.errors import InputError, StorageError

EXPECTED = Expected((ExpectedStage("loading", 1.0, 2e9), ExpectedStage("back: folds", 60.0, 9e9, 30e9)))
ROOMY = replace(REFERENCE, memory_bytes=10**10, disk_bytes=10**11)


def test_what_fits_is_let_through() -> None:
    EXPECTED.check(ROOMY, ("a cluster",))


def test_too_little_memory_is_refused_with_need_have_and_remedy() -> None:
    with pytest.raises(
        InputError, match=r"back: folds needs about 9\.0 GB.*free 8\.0 GB: fewer --samples, or a cluster"
    ):
        EXPECTED.check(replace(ROOMY, memory_bytes=8 * 10**9), ("fewer --samples", "a cluster"))
    with pytest.raises(InputError, match=r"--max-memory allows 8\.0 GB"):
        EXPECTED.check(ROOMY, ("a cluster",), most_memory=8e9)


def test_a_limit_above_what_is_free_promises_no_more_than_that() -> None:
    told = r"this machine has free 8\.0 GB: a cluster, or a machine with more memory$"
    with pytest.raises(InputError, match=told):
        EXPECTED.check(replace(ROOMY, memory_bytes=8 * 10**9), ("a cluster",), most_memory=1e12)


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (8e9, r"9\.0 GB of memory, and --max-memory allows 8\.0 GB: raise it, or a cluster"),
        (8.99e9, r"9\.00 GB of memory, and --max-memory allows 8\.99 GB"),
        (1e3, r"9\.0 GB of memory, and --max-memory allows 1\.0 kB"),
    ],
)
def test_a_limit_is_told_in_digits_that_show_why_it_is_too_low(limit: float, told: str) -> None:
    with pytest.raises(InputError, match=told):
        EXPECTED.check(ROOMY, ("a cluster",), most_memory=limit)


def test_too_little_disk_is_refused_with_need_have_and_remedy() -> None:
    with pytest.raises(StorageError, match=r"30\.0 GB on the disk, which has 20\.0 GB free: .*--run"):
        EXPECTED.check(replace(ROOMY, disk_bytes=2 * 10**10), ("a cluster",))
    with pytest.raises(StorageError, match=r"30\.0 GB on the disk, which has 0\.2 MB free"):
        EXPECTED.check(replace(ROOMY, disk_bytes=200_000), ("a cluster",))


def test_totals_are_those_of_the_stages() -> None:
    assert (EXPECTED.seconds, EXPECTED.memory_bytes, EXPECTED.disk_bytes) == (61.0, 9e9, 30e9)
