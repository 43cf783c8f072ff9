"""The script that trained the embedded model: its text, its splits, its perplexity, its loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.demo import corpus, perplexity

# Below this, equal text is boilerplate such as an empty package file.
MIN_SOURCE_CHARS = 1000


@pytest.fixture(scope="module", name="modules")
def read_modules() -> list[corpus.Module]:
    return corpus.collect_modules()


def test_perplexity_of_a_uniform_unigram_model_is_the_vocabulary_size() -> None:
    assert perplexity.unigram_perplexity([0, 1, 2, 3], [3, 0, 0], 4) == pytest.approx(4.0)


def test_too_short_a_text_has_no_perplexity() -> None:
    with pytest.raises(ValueError, match="too few"):
        perplexity.window_inputs([1, 2, 3])


@pytest.mark.slow
def test_no_source_is_in_two_splits(modules: list[corpus.Module]) -> None:
    owner: dict[str, corpus.Split] = {}
    for module in modules:
        if len(module.source) >= MIN_SOURCE_CHARS:
            assert owner.setdefault(module.source, module.split) is module.split, module.path
    assert set(owner.values()) == set(corpus.Split)


@pytest.mark.slow
def test_heldout_lines_are_not_training_lines(modules: list[corpus.Module]) -> None:
    heldout = corpus.cut_text(modules, corpus.Split.HELDOUT, 220_000)
    lines = [line for line in heldout.splitlines() if len(line) >= 40]
    known = set("\n".join(corpus.documents(modules, corpus.Split.TRAIN)).splitlines())
    # Idioms and notices recur all over Python's code; a leaked module would show as far more.
    assert sum(line in known for line in lines) < 0.1 * len(lines)


def write_library(folder: Path) -> None:
    """Writes a small standard library with files that must be left out."""
    files = {
        "alpha.py": '"""Alpha."""\n\n\ndef f():\n    """Does f."""\n',
        "pkg/beta.py": "x = 1\n",
        "pkg/test/gamma.py": "x = 2\n",
        "site-packages/delta.py": "x = 3\n",
        "_sysconfigdata_linux.py": "build_time_vars = {}\n",
        "own.py": "# Permission to use,\n# copy, modify ...\nx = 4\n",
        "encodings/cp999.py": "decoding_table = (\n)\n",
        "empty.py": "\n",
    }
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source, encoding="utf-8")


def test_collection_is_deterministic_and_leaves_out_what_is_unfit(tmp_path: Path) -> None:
    write_library(tmp_path)
    modules = corpus.collect_modules(tmp_path)
    assert [module.path for module in modules] == ["alpha.py", "pkg/beta.py"]
    assert modules[0].prose == "Alpha.\n\nDoes f."
    assert corpus.collect_modules(tmp_path) == modules


def test_split_depends_on_the_path_alone() -> None:
    # Pinned: another assignment would put trained-on modules into the held-out text.
    assert corpus.split_of("copyreg.py") is corpus.Split.HELDOUT
    assert corpus.split_of("argparse.py") is corpus.Split.TRAIN


def test_cut_text_keeps_whole_lines_within_the_limit() -> None:
    source = "".join(f"line_{number} = {number}\n" for number in range(200))
    modules = [corpus.Module("copyreg.py", source, "")]
    text = corpus.cut_text(modules, corpus.Split.HELDOUT, 500)
    assert len(text.encode()) <= 500
    assert source.startswith(text)
