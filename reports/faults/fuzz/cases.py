"""Cases of every kind: a command line, and what was done to the files that it reads."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from reports.faults.fuzz.bench import ANALYSIS, EDITED, PLANNING, Bench
from reports.faults.fuzz.damage import ABSENT, Damage, damages
from reports.faults.fuzz.lines import lines
from reports.faults.fuzz.texts import templates, texts
from reports.faults.fuzz.way import Change


@dataclass(frozen=True)
class Case:
    """One try."""

    kind: str
    line: tuple[str, ...]
    bases: tuple[str, ...]
    """Whole folders that it needs."""
    damages: tuple[Damage, ...] = ()
    same_answer: bool = False
    """Whether a success must be that of the whole folder: results, not inputs, and one change of them."""
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """What was tried, to be read and found again."""
        done = "; ".join(f"{damage.file}: {damage.how}" for damage in self.damages)
        return f"[{self.kind}] qplan {' '.join(map(ascii, self.line))}" + (f"  after  {done}" if done else "")


OPTIONS, ARTIFACTS, CONFIGS, FOLDERS, TEXTS = "options", "artifacts", "configs", "folders", "texts"
KINDS = (OPTIONS, ARTIFACTS, CONFIGS, FOLDERS, TEXTS)

_READERS = {
    "golden": (
        ("explain", "int8"),
        ("explain", "int8", "0.mlp.down_proj"),
        ("explain", "int4", "*.o_proj"),
        ("explain", "int8-mnn-3.5.0", "lm_head"),
        ("plan", "diff", "int4", "int8"),
        ("plan", "diff", "int8", "int8-mnn-3.5.0", "--all"),
        ("report", "int8"),
        ("frontier", "--points", "3"),
        ("emit", "--no-build", "--plan", "golden/int8/plan.json"),
        ("emit", "--no-build", "--max-decode-ms", "90"),
        ("profile",),
    ),
    "small": (
        ("analyze", "hf", *ANALYSIS),
        ("emit", *PLANNING, "--budget", "int4"),
        ("emit", *PLANNING, "--plan", "small/int4/plan.json"),
        ("explain", "int4"),
        ("report", "int4"),
    ),
}
"""What reads a run, by the run."""

_READ_MOST = frozenset(
    {"sensitivity.parquet", "plan.json", "calibration.json", "fold.json", "verification.json", "device.json"}
)
"""Files that most of these read: damaged more often than others."""

_BASES = ("hf", "golden", "small", "mnn")

_MOST_OFTEN = ("golden", "golden", "golden", "golden", "small")


def cases(bench: Bench) -> st.SearchStrategy[Case]:
    """Cases of all kinds."""
    of_runs = artifacts(bench)
    kinds = [options(), options(), of_runs, of_runs, configs(), folders(bench), reading_texts()]

    @st.composite
    def case(draw: st.DrawFn) -> Case:  # a name of its own: hypothesis would print all of the strategies
        return draw(kinds[draw(st.integers(0, len(kinds) - 1))])

    return case()


def options() -> st.SearchStrategy[Case]:
    """Command lines on whole folders, in terminals of all widths."""
    environments = st.fixed_dictionaries(
        {}, optional={"COLUMNS": st.sampled_from(["0", "1", "20", "x", "-5", "100000"]), "NO_COLOR": st.just("1")}
    )
    with_json = st.sampled_from([(), (), ("--json",), ("--quiet",)])

    def make(line: tuple[str, ...], mode: tuple[str, ...], environment: dict[str, str]) -> Case:
        bases = tuple(base for base in _BASES if any(base in word for word in line))
        return Case(OPTIONS, (*line, *mode), bases, environment=environment)

    return st.builds(make, lines(), with_json, environments)


def artifacts(bench: Bench) -> st.SearchStrategy[Case]:
    """Runs with damaged artifacts, read by every command that reads a run."""
    files = {base: [f"{base}/{file}" for file in bench.files(base)] for base in _READERS}
    files = {base: found + 3 * [f for f in found if Path(f).name in _READ_MOST] for base, found in files.items()}

    def of_run(base: str) -> st.SearchStrategy[Case]:
        damage = st.sampled_from(files[base]).flatmap(damages)

        def make(reader: tuple[str, ...], done: list[Damage]) -> Case:
            run = () if reader[0] == "ladder" else ("--run", base)
            whole = Path(done[0].file).name not in EDITED and done[0].how not in ABSENT
            same = len(done) == 1 and whole
            bases = (base, "hf") if base == "small" else (base,)
            return Case(ARTIFACTS, (*reader, *run, "--json"), bases, tuple(done), same)

        several = st.lists(damage, min_size=1, max_size=2) | damage.map(lambda one: [one])
        return st.builds(make, st.sampled_from(_READERS[base]), several)

    return st.sampled_from(_MOST_OFTEN).flatmap(of_run)


def configs() -> st.SearchStrategy[Case]:
    """Models whose settings are wrong, in Hugging Face folders and in MNN's."""
    mine = ("config.json", "config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")
    theirs = ("config.json", "llm_config.json")
    found = {"hf": mine, "mnn": theirs}

    def of_model(base: str) -> st.SearchStrategy[Case]:
        damage = st.sampled_from([f"{base}/{file}" for file in found[base]]).flatmap(damages)
        damage = damage | templates("hf/chat_template.jinja") if base == "hf" else damage
        several = st.lists(damage, min_size=1, max_size=3)
        line = ("check", "mnn", "--json") if base == "mnn" else ("analyze", "hf", *ANALYSIS, "--run", "new")
        return several.map(lambda done: Case(CONFIGS, line, (base,), tuple(done)))

    return st.sampled_from(sorted(found)).flatmap(of_model)


def folders(bench: Bench) -> st.SearchStrategy[Case]:
    """Model folders whose files are damaged, or no files at all."""

    def of_model(base: str) -> st.SearchStrategy[Case]:
        damage = st.sampled_from([f"{base}/{file}" for file in bench.files(base)]).flatmap(damages)
        checks = [("check", "mnn", "--json"), ("check", "mnn", "--full")]
        line = st.sampled_from(checks) if base == "mnn" else st.just(("analyze", "hf", *ANALYSIS, "--run", "new"))
        one = st.builds(lambda done, line: Case(FOLDERS, line, (base,), (done,)), damage, line)
        two = st.builds(
            lambda done, line: Case(FOLDERS, line, (base,), tuple(done)), st.lists(damage, max_size=3), line
        )
        return one | two

    return st.sampled_from(["hf", "mnn", "mnn"]).flatmap(of_model)


def reading_texts() -> st.SearchStrategy[Case]:
    """Calibration texts of every form and none."""

    def make(name: str, data: bytes, samples: str) -> Case:
        def apply(path: Path) -> None:
            path.write_bytes(data)

        done = Damage(name, f"holds {data[:300]!a}", apply)
        return Case(
            TEXTS, ("analyze", "hf", *ANALYSIS, "--calib", name, "--samples", samples, "--run", "new"), ("hf",), (done,)
        )

    names = st.sampled_from(["t.txt", "t.jsonl", "t.parquet", "t.json", "t.md", "t", "t.TXT", "t[1].txt"])
    return st.builds(make, names, texts(), st.sampled_from(["1", "2"]))


def hostile_names(folder: Path) -> None:
    """Leave a FIFO and a link to itself where command lines may name them."""
    makers: dict[str, Change] = {
        "fifo": os.mkfifo,
        "loop": lambda path: path.symlink_to("loop"),
    }
    for name, make in makers.items():
        make(folder / name)
