"""What is measured of every model: losses on the engine, here and emulated, texts, and speeds by turns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import sha256_json, write_text
from qplan.cost.target import find_target
from qplan.mnn.arm.home import require_arm
from qplan.mnn.arm.processors import find_processor
from qplan.mnn.build.skeleton import folder_bytes
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.host import THIS_PYTHON, EngineHost
from qplan.run.speeds import Phase
from qplan.run.verification import Speed
from qplan.sensitivity.kept_logits import KeptLogits, Logits
from qplan.verify.agreement import agreement_with
from qplan.verify.folder import Windows, perplexity_of
from qplan.verify.measure import Trial
from qplan.verify.samples import WritingEngine, engine_texts, torch_texts, until_end
from qplan.verify.turns import Contestant, speeds_in_turns
from reports.smollm2.models import Model
from reports.smollm2.subject import Subject, quiet, tell

QUESTIONS = (
    "What is the capital of France, and on which river does it lie?",
    "Write one sentence about autumn.",
    "A train leaves at 9:40 and arrives at 11:05. How long does it take?",
)
NEW_TOKENS = 48
PHASES: tuple[Phase, ...] = ("decode", "prefill")

Row = dict[str, Any]


class Measurements:
    """Measures models, each once; what the model in FP32 says is computed when the first of them needs it."""

    def __init__(self, subject: Subject, open_: ExitStack) -> None:
        """Keep results in the subject's folder.

        Args:
            subject: the model, and the text.
            open_: closes what is kept on the disk until the end.
        """
        self._subject, self._open = subject, open_

    @cached_property
    def _reference(self) -> KeptLogits:
        return self._open.enter_context(self._subject.reference())

    @cached_property
    def _prompts(self) -> list[list[int]]:
        tokenizer = self._subject.loaded.tokenizer
        return [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
            )
            for question in QUESTIONS
        ]

    def texts_of_fp32(self) -> Row:
        """What the Hugging Face model answers."""
        loaded = self._subject.loaded

        def answer() -> Row:
            found = [torch_texts(loaded, np.array([prompt]), NEW_TOKENS)[0] for prompt in self._prompts]
            return {"texts": self._read(found)}

        found: Row = self.once("texts-fp32", {"reference": loaded.card.sha256}, answer)
        return found

    def row(self, model: Model) -> Row:
        """Bytes, losses and texts of a model."""
        found: Row = {
            "name": model.name,
            "command": model.command,
            "against": model.against,
            "file_bytes": folder_bytes(model.folder).total,
            "mean_bits": model.mean_bits,
            "dynamic_option": model.dynamic_option,
            "for_phones": model.for_phones,
            "beside": model.beside,
        }
        inputs = self._subject.inputs | {"model": model.digest}
        found["here"] = self.once(f"{model.name}-here", inputs, lambda: self._loss(model, self._subject.judged))
        if model.beside is not None:
            return found
        if not model.for_phones:
            found |= self.once(f"{model.name}-texts", inputs, lambda: self._texts(model))
        if self._subject.emulated_tokens and self._right_there(model):
            part = self._part()
            inputs |= {"processor": self._subject.processor, "tokens": str(part.tokens)}
            found["arm"] = self.once(f"{model.name}-arm", inputs, lambda: self._loss(model, part, self._host()))
            found["same_tokens_here"] = self.once(f"{model.name}-part", inputs, lambda: self._loss(model, part))
        return found

    def speeds(self, models: Sequence[Model]) -> dict[str, Row]:
        """RAM and speed of all models by turns, one thread."""
        timed = [model for model in models if not model.for_phones]
        inputs = {model.name: model.digest for model in timed}
        found: dict[str, Row] = self.once("speeds", inputs, lambda: self._by_turns(timed))
        return found

    def _by_turns(self, models: Sequence[Model]) -> dict[str, Row]:
        tell("speeds by turns: " + ", ".join(model.name for model in models))
        # nothing is compared while models are timed
        trial = Trial(KeptLogits(self._subject.judged.rows, np.empty((0, 0, 0), np.float32)))
        contestants = [Contestant(one.name, one.folder, one.formats, one.dynamic_option) for one in models]
        speeds = speeds_in_turns(contestants, trial, self._subject.loaded.card.context)
        named = {name: speed for (name, _), speed in speeds.items()}
        return {one.name: _speed_row(one, named) for one in models}

    def _right_there(self, model: Model) -> bool:
        """Whether the emulated processor computes all of a model's formats right."""
        target = find_target(self._subject.processor)
        return all(target.legal(spec, model.formats[spec.name]) for spec in self._subject.loaded.card.planned)

    def _part(self) -> Windows:
        rows = self._subject.judged.rows
        length = min(self._subject.emulated_tokens, rows.shape[1])
        part = rows[: max(1, self._subject.emulated_tokens // length), :length]
        return Windows(part, part.size)

    def _host(self) -> EngineHost:
        name = self._subject.processor
        return require_arm((name,), "--processor").host(find_processor(name))

    def loss(self, name: str, judged: Windows, logits_of: Callable[[NDArray[np.int64]], Logits]) -> Row:
        """What a model loses on the beginning of the text."""
        tell(f"{name}: {judged.tokens:,} tokens")
        count, length = judged.rows.shape
        reference = KeptLogits(judged.rows, self._reference.logits[:count, :length])
        nll, agreement = agreement_with(reference, judged, logits_of, quiet)
        return asdict(agreement) | {"perplexity": perplexity_of(nll), "tokens": judged.tokens}

    def _loss(self, model: Model, judged: Windows, host: EngineHost = THIS_PYTHON) -> Row:
        name = model.name if host is THIS_PYTHON else f"{model.name}, emulated"
        context = self._subject.loaded.card.context
        with EngineSession(model.folder, model.runtime(1), context=context, host=host) as engine:
            return self.loss(name, judged, engine.logits)

    def _texts(self, model: Model) -> Row:
        one = WritingEngine(model.name, model.folder, model.runtime(1))
        return {"texts": self._read(engine_texts(one, self._prompts, NEW_TOKENS, self._subject.loaded.card.context))}

    def _read(self, texts: Sequence[list[int]]) -> list[str]:
        tokenizer = self._subject.loaded.tokenizer
        return [tokenizer.decode(until_end(text, tokenizer.eos_token_id)) for text in texts]

    def once(self, name: str, inputs: Mapping[str, str], measure: Callable[[], Any]) -> Any:  # noqa: ANN401 - JSON
        """A result that is kept under a name, or made if it is of other inputs."""
        path, key = self._subject.work / "measured" / f"{name}.json", sha256_json(dict(inputs))
        kept = _kept(path)
        if kept is None or kept["key"] != key:
            start = time.monotonic()
            kept = {"key": key, "found": measure(), "took_s": round(time.monotonic() - start, 1)}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(kept, indent=1))
        return kept["found"]


def took_s(work: Path) -> float:
    """Seconds that everything that was measured took."""
    kept = filter(None, map(_kept, (work / "measured").glob("*.json")))
    return float(sum(each["took_s"] for each in kept))


def _kept(path: Path) -> Row | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _speed_row(model: Model, speeds: Mapping[str, Speed]) -> Row:
    own = speeds[model.name]
    row: Row = {
        "ram_bytes": own.ram_bytes,
        "decode_tokens_per_s": own.decode_tokens_per_s,
        "prefill_tokens_per_s": own.prefill_tokens_per_s,
    }
    if model.against is not None:
        for phase in PHASES:
            spread = own.against(speeds[model.against], phase)
            if spread is not None:
                row[phase] = {"times": spread.times, "low": spread.low, "high": spread.high, "rounds": spread.rounds}
    return row
