"""lm-evaluation-harness on the real engine, beside its own Hugging Face model on the same weights."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qplan as package
from qplan import demo
from qplan.errors import InputError
from qplan.formats import FP16, INT8
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.engine import passes
from qplan.mnn.runtime import RuntimeConfig
from tests.support.command import Done, qplan
from tests.support.documented import DOCS, assert_documented, keys
from tests.support.harness_tasks import TASKS, write_tasks
from tests.support.mnn_models import ExportedModel

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'qplan[eval]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # the harness's own

MODEL = Path(demo.__file__).parent / "stdlib-3m"
NATS = 2e-3
"""What a log-likelihood of tens of nats may differ by: FP16 weights and another order of sums."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model in fp16, computed in fp32, and in int8 with int8 activations."""
    out = tmp_path_factory.mktemp("folders")
    exported = ExportedModel(MODEL, export_skeleton(MODEL, out / "skeleton"))
    exact = RuntimeConfig("normal", "high")
    exported.build(exported.tensors(exported.formats(FP16)), out / "fp16", runtime=exact)
    exported.build(exported.tensors(exported.formats(INT8)), out / "int8")
    return {"fp16": out / "fp16", "int8": out / "int8"}


@pytest.fixture(scope="module")
def mnn(folders: dict[str, Path]) -> Iterator[Any]:
    """The fp16 folder as the harness's model."""
    from qplan.harness.backend import MnnLM

    with MnnLM(folders["fp16"], threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    """The same weights as the harness runs them itself."""
    return _hugging_face()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Our own task files."""
    import datasets
    from lm_eval import evaluator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(evaluator, "add_env_info", lambda _results: None)  # asks pip and the system, for seconds
        yield write_tasks(tmp_path_factory.mktemp("tasks"))


def _hugging_face(**more: object) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(MODEL), dtype="float32", device="cpu", batch_size=1, **more)


def instances(kind: str, *arguments: tuple[object, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]


def evaluated(model: object, tasks: Path) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    names = [f"qplan_{name}" for name in TASKS]
    found: Mapping[str, Any] = simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0)
    return found


def test_scores_of_fp16_weights_are_the_hugging_face_models(mnn: Any, hugging_face: Any, tasks: Path) -> None:
    ours, theirs = evaluated(mnn, tasks), evaluated(hugging_face, tasks)
    for task, expected in theirs["results"].items():
        found = ours["results"][task]
        for key in expected:
            if isinstance(expected[key], (int, float)):
                assert found[key] == pytest.approx(expected[key], rel=1e-4), (task, key)
        for one, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            if task == "qplan_until":
                assert one["filtered_resps"] == other["filtered_resps"]
            else:
                flat = [np.ravel(np.array(sample["filtered_resps"], float)) for sample in (one, other)]
                assert flat[0] == pytest.approx(flat[1], abs=NATS)
    # the tasks tell models apart: neither all right nor all wrong
    assert 0 < ours["results"]["qplan_choice"]["acc,none"] < 1


@pytest.mark.parametrize("option", [0, 2])
def test_a_score_is_that_of_the_logits(folders: dict[str, Path], option: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a sequence takes several passes, under int8 activations and both of their scales."""
    ids = [int(token) for token in np.random.default_rng(option).integers(0, 4096, 203)]
    with package.Engine(folders["int8"], RuntimeConfig(dynamic_option=option)) as engine:
        logits = engine.logits(ids)
        every = [(place, ids[place + 1]) for place in range(202)] + [(202, int(logits[202].argmax()))]
        monkeypatch.setattr(passes, "_LOGITS_BYTES", 4 * engine.vocabulary * 48)
        assert passes.passes(203, 0, engine.vocabulary) == [48, 48, 48, 48, 11]
        assert passes.passes(203, 202, engine.vocabulary) == [192, 11]
        likely = torch.log_softmax(torch.from_numpy(logits).double(), -1)
        for wanted in (every, every[100:120], every[-1:], every[-2:], [(150, 3), (150, 4), (7, 9)]):
            found = engine.score(ids, wanted)
            expected = [float(likely[place, token]) for place, token in wanted]
            assert [one.log_probability_nats for one in found] == pytest.approx(expected, abs=1e-4)
            assert [one.likeliest for one in found] == [int(logits[place].argmax()) == token for place, token in wanted]
        assert engine.score(ids, every[-1:])[0].likeliest
        with pytest.raises(InputError, match="position 203: outside of the sequence of 203 tokens"):
            engine.score(ids, [(203, 1)])


def test_the_greedy_flag_is_what_the_engine_would_write(mnn: Any) -> None:
    context = mnn.engine.encode("def read(self, size):")
    written: list[int] = []
    for _ in range(5):
        written.append(int(mnn.engine.logits(context + written)[-1].argmax()))
    others = [[*written[:-1], written[-1] - 1], [written[0] - 1, *written[1:]]]
    found = mnn._loglikelihood_tokens([(None, context, targets) for targets in (written, *others)])
    assert [greedy for _, greedy in found] == [True, False, False]
    assert found[0][0] > max(found[1][0], found[2][0])


def test_answers_come_in_the_order_of_the_requests(mnn: Any) -> None:
    asked = [(f"The value of {word} is", f" {letter}") for word in ("a", "the second one") for letter in "WXYZ"]
    asked += [("The value of a is W", "."), ("", "The value of a"), ("The value", " of a")]
    expected = dict(zip(asked, mnn.loglikelihood(instances("loglikelihood", *asked)), strict=True))
    assert len({nats for nats, _ in expected.values()}) == len(asked)
    random.Random(0).shuffle(asked)
    # exactly, as one pass answers the same requests
    assert mnn.loglikelihood(instances("loglikelihood", *asked)) == [expected[one] for one in asked]


def test_requests_that_begin_alike_share_a_pass(mnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    score = mnn.engine.score

    def counted(ids: object, wanted: list[object]) -> object:
        calls.append(len(wanted))
        return score(ids, wanted)

    monkeypatch.setattr(mnn.engine, "score", counted)
    mnn.loglikelihood(instances("loglikelihood", *[("Question?\nAnswer:", f" {letter}") for letter in "ABCD"]))
    assert calls == [4]


def test_a_text_without_a_context_stands_after_the_end_of_another(mnn: Any, hugging_face: Any) -> None:
    asked = instances("loglikelihood", ("", "import os"), ("", "<|endoftext|>import os"))
    ours, theirs = mnn.loglikelihood(asked), hugging_face.loglikelihood(asked)
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], abs=NATS)
    assert mnn.prefix_token_id == hugging_face.prefix_token_id


def test_long_requests_are_cut_and_rolled_as_the_harness_does(folders: dict[str, Path]) -> None:
    from qplan.harness.backend import MnnLM

    words = "the file is read and written again ; " * 12
    likely = instances("loglikelihood", (words, " read and written"), (words[:60], " closed"))
    texts = [words, words[:40], words[:300]]
    hugging_face = _hugging_face(max_length=24)
    with MnnLM(folders["fp16"], threads=1, max_length=24) as model:
        assert len(model.tok_encode(words)) > 3 * 24
        ours, theirs = (one.loglikelihood(likely) for one in (model, hugging_face))
        assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], abs=NATS)
        rolling = instances("loglikelihood_rolling", *[(text,) for text in texts])
        found, expected = (one.loglikelihood_rolling(rolling) for one in (model, hugging_face))
        assert found == pytest.approx(expected, abs=5 * NATS)
        # a prompt loses its beginning, to leave room for the answer
        until = instances("generate_until", (words, {"until": ["\n\n"], "max_gen_toks": 8}))
        assert model.generate_until(until) == hugging_face.generate_until(until)
        with pytest.raises(InputError, match="max_gen_toks 24 leaves no room for a prompt in the context of 24"):
            model.generate_until(instances("generate_until", ("a", {"until": [], "max_gen_toks": 24})))


def test_an_answer_ends_before_the_first_stop_string(mnn: Any) -> None:
    context = "def read(self, size):\n"
    whole = "".join(mnn.engine.generate(context, 20))
    first, second = whole[5:8], whole[2:4]
    for stops in ([first], [first, second], second, ["never there", ""]):
        given = {"until": stops, "max_gen_toks": 20, "do_sample": False, "temperature": 0.0}
        listed = [stops] if isinstance(stops, str) else stops
        expected = min((whole.split(stop)[0] for stop in listed if stop), key=len)
        assert mnn.generate_until(instances("generate_until", (context, given))) == [expected]
    # the engine stops as soon as the string is there
    assert len(mnn.engine.timing.decode_s) == 19
    mnn.generate_until(instances("generate_until", (context, {"until": [whole[0]], "max_gen_toks": 20})))
    assert len(mnn.engine.timing.decode_s) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "mnn takes the likeliest token; set do_sample=False"),
        ({"temperature": 0.7}, "the task samples"),
    ],
)
def test_sampling_is_refused(mnn: Any, given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mnn.generate_until(instances("generate_until", ("a", given)))


def test_what_the_engine_cannot_follow_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from qplan.harness.backend import MnnLM

    with pytest.raises(InputError, match="batch_size 8: MNN's engine computes one sequence at a time"):
        MnnLM(folders["fp16"], batch_size=8)
    with pytest.raises(InputError, match="nowhere"):
        MnnLM(tmp_path / "nowhere")


def test_a_chat_template_is_the_tokenizers(mnn: Any, folders: dict[str, Path]) -> None:
    from qplan.harness.backend import MnnLM

    history = [{"role": "user", "content": "Hello"}]
    with pytest.raises(InputError, match="add tokenizer=MODEL to --model_args"):
        mnn.apply_chat_template(history)
    with MnnLM(folders["fp16"], threads=1, tokenizer=str(MODEL)) as model:
        assert model.apply_chat_template(history) == model.engine.chat("Hello")
        assert model.tok_encode("import os") == mnn.tok_encode("import os")
        assert (model.prefix_token_id, model.eot_token_id) == (mnn.prefix_token_id, mnn.eot_token_id)


def test_the_model_is_registered_as_mnn() -> None:
    from lm_eval.api.registry import get_model

    from qplan.harness.backend import MnnLM

    assert get_model("mnn") is MnnLM
    assert [point.load() for point in entry_points(group="lm_eval.models", name="mnn")] == [MnnLM]


def test_the_harness_s_own_command_knows_mnn(
    folders: dict[str, Path], tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qplan.harness.installed import harness_command

    model = ("--model", "mnn", "--model_args", f"folder={folders['fp16']},threads=1")
    asked = ("--tasks", "qplan_letters", "--include_path", str(tasks), "--limit", "2", "--output_path", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["lm-eval", "run", *model, *asked])
    harness_command()
    (found,) = tmp_path.rglob("results_*.json")
    assert json.loads(found.read_text())["results"]["qplan_letters"]["sample_len"] == 2


def hold(done: Done) -> None:
    assert done.returncode == 0, done.stderr
    page = DOCS / "reference" / "json.md"
    assert_documented(done.document, keys(page, "Every command") | keys(page, "qplan eval"))


def test_eval_prints_both_models(folders: dict[str, Path], tasks: Path, tmp_path: Path) -> None:
    asked = [str(folders["fp16"]), "--tasks", "qplan_ch*,qplan_letters", "--include-path", str(tasks)]
    asked += ["--reference", str(MODEL), "--threads", "1", "--limit", "3", "--num-fewshot", "1"]
    done = qplan("eval", *asked, "--json", folder=tmp_path)
    hold(done)
    found = done.document
    assert [(one["task"], one["metric"]) for one in found["scores"]] == [
        ("qplan_choice", "acc"),
        ("qplan_choice", "acc_norm"),
        ("qplan_letters", "acc"),
    ]
    for one in found["scores"]:
        assert one["folder"] == one["reference"]
        assert (one["samples"], one["shots"], one["higher_is_better"]) == (3, 1, True)
    shown = qplan("eval", *asked, folder=tmp_path).stdout
    assert shown.count("qplan_choice") == 2
    assert "FP32" in shown
    assert "--limit 3" in shown


def test_eval_alone(folders: dict[str, Path], tasks: Path, tmp_path: Path) -> None:
    asked = (str(folders["int8"]), "--tasks", "qplan_until", "--include-path", str(tasks), "--threads", "1")
    done = qplan("eval", *asked, "--json", folder=tmp_path)
    hold(done)
    assert [one["reference"] for one in done.document["scores"]] == [None]
    quiet = qplan("eval", *asked, "--quiet", folder=tmp_path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tasks", "no_such_task"), "no such task in lm-evaluation-harness nor under"),
        (("--tasks", "qplan_letters,"), "name one task at least"),
        (("--tasks", "qplan_letters", "--limit", "0"), "--limit 0: must be at least 1"),
        (("--tasks", "qplan_broken"), "a task cannot be loaded"),
        (("--tasks", "qplan_letters", "--reference", "nowhere"), "nowhere"),
    ],
)
def test_eval_refuses(
    folders: dict[str, Path], tasks: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    head = f"task: qplan_broken\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/none.jsonl}}}}\n"
    (tasks / "broken.yaml").write_text(head + "test_split: test\n" + TASKS["letters"], encoding="utf-8")
    done = qplan("eval", str(folders["fp16"]), "--include-path", str(tasks), *more, folder=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_eval_refuses_another_models_tokens(
    folders: dict[str, Path], tied_model_dir: Path, tasks: Path, tmp_path: Path
) -> None:
    asked = (str(folders["fp16"]), "--tasks", "qplan_letters", "--include-path", str(tasks))
    done = qplan("eval", *asked, "--reference", str(tied_model_dir), folder=tmp_path)
    assert done.returncode == 2
    assert "differ on everyday text" in " ".join(done.stderr.split())
