"""What users type about budgets and limits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.choosing.request import Increase, PlanRequest, largest_sum
from qplan.cost.kv_cache import KvMode
from qplan.errors import InputError
from qplan.formats import INT8
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.planner.size import Size
from qplan.run.additivity import JointPoint
from qplan.run.folder import RunFolder
from qplan.run.kv_cache import PlannedCache
from tests.support.invented_table import make_table


def test_labels_name_folders() -> None:
    assert PlanRequest().label == "int8"
    assert PlanRequest(budgets=parse_budgets(["int8", "3MB"])).label == "int8-3MB"
    files = Rules(parity="files")
    assert PlanRequest(rules=files).label == "int8-files"
    assert PlanRequest(budgets=parse_budgets(["3MB"]), rules=files).label == "3MB"
    wanted = PlanRequest(
        budgets=(),
        objective="smallest",
        max_kl=1e-3,
        max_ppl_increase=Increase.parse("1%"),
        max_ram=Size.parse("4MB", "--max-ram"),
    )
    assert wanted.label == "smallest-max-kl-0.001-max-ppl-1%-max-ram-4MB"
    assert RunFolder(Path("x")).budget(wanted.label).name == "smallest-max-kl-0.001-max-ppl-1pct-max-ram-4mb"


def test_a_context_names_its_folder_and_takes_its_part_of_the_ram() -> None:
    wanted = PlanRequest(max_ram=Size.parse("4MB", "--max-ram"), context=512, kv=KvMode.K8)
    assert wanted.label == "int8-max-ram-4MB-context-512-kv-k8"
    assert wanted.asked() == ("--max-ram", "--context", "--kv")
    wanted = replace(wanted, rules=Rules(parity="files"))
    table, run = make_table(), RunFolder(Path("none"))
    cache = PlannedCache(mode=KvMode.K8, tokens=512, bytes=1_500_000, float_bytes=3_000_000)
    plain, beside = (PlanRequest.limits(request, table, run)[0] for request in (wanted, replace(wanted, cache=cache)))
    formats = {spec.name: INT8.resolve(spec.in_features) for spec in table.model.tensors}
    assert beside.limit == plain.limit == 4
    assert beside.cost.total(table.model, formats) == pytest.approx(plain.cost.total(table.model, formats) + 1.5)


def test_a_limit_with_a_cache_stands_beside_that_of_a_uniform_export() -> None:
    table, run = make_table(), RunFolder(Path("none"))
    cache = PlannedCache(mode=KvMode.K8, tokens=512, bytes=1_500_000, float_bytes=3_000_000)
    wanted = PlanRequest(max_ram=Size.parse("2MB", "--max-ram"), context=512, cache=cache)
    limits = [(limit.of, limit.cost.offset) for limit in wanted.limits(table, run) if limit.name == "RAM"]
    assert limits == [("int8", 0), ("", 1_500_000)]


def test_a_kv_cache_needs_its_number_of_tokens() -> None:
    with pytest.raises(InputError, match="--kv k8 needs --context"):
        PlanRequest(kv=KvMode.K8)
    with pytest.raises(InputError, match="--context 0: must be at least 1"):
        PlanRequest(context=0)


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1 ppl", "1%%"])
def test_increases_that_mean_nothing(text: str) -> None:
    with pytest.raises(InputError, match="--max-ppl-increase"):
        Increase.parse(text)


def test_increases_become_nats() -> None:
    assert Increase.parse("1%").nll_nats(3.0) == pytest.approx(math.log(1.01))
    assert Increase.parse("0.5").nll_nats(3.0) == pytest.approx(math.log((math.exp(3) + 0.5) / math.exp(3)))


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="--objective smallest needs a limit on the loss"):
        PlanRequest(objective="smallest")
    with pytest.raises(InputError, match="--max-kl 0: must be above 0"):
        PlanRequest(max_kl=0.0)
    table, run = make_table(), RunFolder(Path("none"))
    with pytest.raises(InputError, match="run 'qplan profile' first"):
        PlanRequest(max_decode_ms=3.0).limits(table, run)


def test_a_limit_on_the_whole_models_loss_is_turned_into_one_on_the_sum() -> None:
    points = (JointPoint("normal", 1e-4, 1.2e-4), JointPoint("normal", 1e-2, 0.8e-2), JointPoint("normal", 1.0, 0.4))
    table = replace(make_table(), joint=points)
    for joint in (1e-5, 1e-4, 3e-3, 1e-2, 0.2):
        assert table.predict_joint(largest_sum(table, joint)) == pytest.approx(joint, rel=1e-6)
    limits = PlanRequest(max_kl=1e-3, max_ppl_increase=Increase(1, relative=True)).loss_ceilings(table, (0.5, 1.0))
    assert [limit.name for limit in limits] == ["KL", "perplexity increase, as KL"]
    assert table.predict_joint(limits[0].limit_nats) == pytest.approx(0.5e-3, rel=1e-6)
