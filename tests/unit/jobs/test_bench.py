"""The tokens that a bench judges on."""

from __future__ import annotations

from qplan.calibration import Text
from qplan.jobs.bench import reference_ids
from qplan.model.load import LoadedModel
from tests.support.tiny_models import words


def test_kinds_of_text_are_judged_alike(qwen2: LoadedModel) -> None:
    first, second = words(200, seed=3), words(200, seed=4)
    ids = [qwen2.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (first, second)]
    kinds = Text((first, second), "two kinds", None, names=("first", "second"))
    assert reference_ids(kinds, qwen2.tokenizer, 21).tolist() == ids[0][:11] + ids[1][:11]
    one = Text((first, second), "two documents", None)
    assert reference_ids(one, qwen2.tokenizer, 21).tolist()[:21] == ids[0][:21]
