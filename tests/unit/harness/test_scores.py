"""The harness's results as records."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from qplan.errors import MeasurementError
from qplan.harness.scores import TaskScore, Value, task_scores

RESULTS: dict[str, Any] = {
    "results": {
        "choices": {"name": "choices", "alias": "- choices", "acc,none": 0.5, "acc_stderr,none": 0.1},
        "sums": {"exact_match,strict": 0.25, "exact_match_stderr,strict": "N/A", "exact_match,loose": 1},
        "both": {"acc,none": 0.4, "acc_stderr,none": 0.05},
    },
    "n-shot": {"choices": 5, "sums": 0},
    "n-samples": {"choices": {"original": 40, "effective": 8}, "sums": {"original": 4, "effective": 4}},
    "higher_is_better": {"choices": {"acc": True}},
}
"""In the form of lm-evaluation-harness 0.4.13."""


def test_a_record_for_every_number() -> None:
    theirs = deepcopy(RESULTS)
    theirs["results"]["choices"]["acc,none"] = 0.75
    found = task_scores(RESULTS, theirs)
    assert found[0] == TaskScore(
        task="choices",
        metric="acc",
        filter="none",
        samples=8,
        shots=5,
        higher_is_better=True,
        folder=Value(0.5, 0.1),
        reference=Value(0.75, 0.1),
    )
    assert [(one.task, one.metric, one.filter) for one in found[1:]] == [
        ("sums", "exact_match", "strict"),
        ("sums", "exact_match", "loose"),
        ("both", "acc", "none"),
    ]
    assert found[1].folder == Value(0.25, None)
    # a group of tasks has no samples of its own
    assert (found[3].samples, found[3].shots, found[3].higher_is_better) == (None, None, None)


def test_without_a_reference() -> None:
    assert all(one.reference is None for one in task_scores(RESULTS, None))


def test_a_metric_of_one_model_only() -> None:
    theirs = deepcopy(RESULTS)
    del theirs["results"]["sums"]["exact_match,loose"]
    with pytest.raises(MeasurementError, match="sums: the harness gives exact_match,loose of the folder, and none"):
        task_scores(RESULTS, theirs)
