"""What to calibrate on: rounding fitted to several texts and to the model's own samples, tested on several kinds.

Run from the repository's root with

    python -m reports.calibration.run --model FOLDER --data FOLDER

``--data`` is a folder with WikiText-2's ``valid.txt`` and ``test.txt``. All linears of the decoder at 4 bits by
``auto``, asymmetric blocks of 64, the head in fp16, memory normal. Losses are mean KL divergences per token in nats on
6,144 tokens of each kind, to which nothing was fitted: *prose* (WikiText-2's test split), *code* (modules of Python's
standard library that are in no calibration text), *Chinese* (this repository's README and the words of its report) and
*chat* (what the model says in both roles, begun with its template). Adds the model to ``results.json``, and writes
``README.md`` beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor

import qplan.demo
from qplan.calibration import load_text
from qplan.model.load import LoadedModel, load_model
from qplan.rounding.moments import gather_moments
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import StoredCache
from qplan.sensitivity.joint import joint_losses
from reports.rounding.subject import JUDGE_ROWS, SEQ_LEN, decoder_formats, windows_of

HOME = Path(__file__).parent
ROOT = Path(__file__).parents[2]
BITS, FIT_ROWS, TEST_ROWS = 4, 32, 24
_TOGETHER = 16
"""Rows that are sampled at a time."""


@dataclass(frozen=True)
class Samples:
    """Draws text from a model itself, at temperature 1."""

    loaded: LoadedModel

    def rows(self, count: int, seed: int, *, chat: bool) -> Tensor:
        """int64 ``[count, SEQ_LEN]``: what follows the first token, or the opening of a user's turn."""
        start = torch.tensor([self._opening() if chat else [self._first()]])
        torch.manual_seed(seed)
        found = [
            self.loaded.model.generate(  # type: ignore[operator]
                start.expand(rows, -1),
                attention_mask=torch.ones(rows, start.shape[1], dtype=torch.int64),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=SEQ_LEN - start.shape[1],
                max_new_tokens=SEQ_LEN - start.shape[1],
                pad_token_id=self._first(),
                eos_token_id=None,
            )
            for rows in (len(part) for part in torch.arange(count).split(_TOGETHER))
        ]
        return torch.cat(found)

    @property
    def has_chat(self) -> bool:
        """Whether the model has a template."""
        return bool(self.loaded.tokenizer.chat_template)

    def _first(self) -> int:
        tokenizer = self.loaded.tokenizer
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
        return int(next(one for one in known if one is not None))

    def _opening(self) -> list[int]:
        """Ids up to where the user speaks."""
        turn = [{"role": "user", "content": "\x00"}]
        before = self.loaded.tokenizer.apply_chat_template(turn, tokenize=False).split("\x00")[0]
        ids: list[int] = self.loaded.tokenizer(before, add_special_tokens=False)["input_ids"]
        return ids


def texts(loaded: LoadedModel, data: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, tokens to fit to and tokens that ``auto`` chooses by."""
    windows, samples = windows_of(loaded), Samples(loaded)
    known = {
        "WikiText-2": load_text(str(data / "valid.txt")),
        "python-stdlib": load_text("python-stdlib"),
        "mixture": load_text("mixture", loaded.tokenizer),
    }
    whole = load_text("mixture")
    if whole.documents != known["mixture"].documents:
        known["mixture, with scripts that the tokenizer does not know"] = whole
    for name, text in known.items():
        cut = windows(text, samples=JUDGE_ROWS, fit_tokens=FIT_ROWS * SEQ_LEN)
        yield name, torch.from_numpy(cut.fit), torch.from_numpy(cut.tokens)
    for name, chat in {"own samples": False, "own chat": True}.items():
        if samples.has_chat or not chat:
            rows = samples.rows(FIT_ROWS + JUDGE_ROWS, 0, chat=chat)
            yield name, rows[:FIT_ROWS], rows[FIT_ROWS:]


def tests(loaded: LoadedModel, data: Path, work: Path) -> dict[str, Tensor]:
    """Tokens by kind."""
    windows, samples = windows_of(loaded), Samples(loaded)
    heldout = Path(qplan.demo.__file__).parent / "heldout.txt"
    chinese = work / "chinese.txt"
    words = json.loads((ROOT / "qplan" / "report" / "locales" / "zh.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    told = "\n".join([readme, *words["messages"].values(), *words["notes"].values()])
    chinese.write_text(told, encoding="utf-8")
    sources = {"prose": data / "test.txt", "code": heldout, "Chinese": chinese}
    found = {
        kind: torch.from_numpy(windows(load_text(str(source)), samples=TEST_ROWS).tokens)
        for kind, source in sources.items()
    }
    return found | ({"chat": samples.rows(TEST_ROWS, 1, chat=True)} if samples.has_chat else {})


def rows_of(loaded: LoadedModel, data: Path, work: Path) -> Iterator[dict[str, Any]]:
    """Every text's losses."""
    formats, judged = decoder_formats(loaded, BITS), tests(loaded, data, work)

    def losses(rounder: Rounder) -> dict[str, float]:
        return {
            kind: joint_losses(loaded, tokens, {"": formats}, "normal", rounder=rounder)[""].kl_nats
            for kind, tokens in judged.items()
        }

    yield {"fitted to": "nothing: to nearest"} | losses(Rounder(loaded))
    for name, *tokens in texts(loaded, data):
        fit, judge = (
            gather_moments(loaded, part, work / f"{name} {of}", inputs={"text": name})
            for of, part in zip(("fit", "judge"), tokens, strict=True)
        )
        rounder = Rounder(loaded, "auto", fit, judge, StoredCache(work / f"{name} auto", {"text": name}))
        yield {"fitted to": name} | losses(rounder)


def page(everything: dict[str, list[dict[str, Any]]]) -> str:
    """The report."""
    lines = [
        "# What to calibrate on",
        "",
        (
            "Written by `python -m reports.calibration.run --model FOLDER --data FOLDER`, from `results.json`. "
            f"All linears of the decoder at {BITS} bits by `auto`, asymmetric blocks of 64, fitted to "
            f"{FIT_ROWS * SEQ_LEN:,} tokens and chosen on {JUDGE_ROWS * SEQ_LEN:,}; the head in fp16, memory normal, "
            f"torch. KL divergence from FP32 in nats per token on {TEST_ROWS * SEQ_LEN:,} tokens of each kind, to "
            "which nothing was fitted. *Mean* is the geometric one. *Own samples* are drawn from the model after its "
            "first token, *own chat* after the opening of a user's turn, both at temperature 1; the kind *chat* "
            "is drawn like the latter with another seed. One seed."
        ),
    ]
    for model, rows in everything.items():
        kinds = [kind for kind in rows[0] if kind != "fitted to"]
        lines += [
            "",
            f"## {model}",
            "",
            f"| fitted to | {' | '.join(kinds)} | mean |",
            f"|---|{'---:|' * (len(kinds) + 1)}",
        ]
        for row in rows:
            losses = [float(row[kind]) for kind in kinds]
            cells = [f"{loss:.2e}" for loss in (*losses, geometric_mean(losses))]
            lines.append(f"| {row['fitted to']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run for one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with valid.txt and test.txt")
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(given.model)
    found = []
    with tempfile.TemporaryDirectory() as work:
        for row in rows_of(loaded, given.data, Path(work)):
            print(json.dumps(row), flush=True)
            found.append(row)
    path = HOME / "results.json"
    everything = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    everything[Path(given.model).name] = found
    path.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    (HOME / "README.md").write_text(page(everything), encoding="utf-8")


if __name__ == "__main__":
    main()
