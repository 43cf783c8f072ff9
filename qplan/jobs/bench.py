"""Measures an MNN model folder on the engine, and how far it is from a Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qplan.calibration import Text, check_text, load_text
from qplan.errors import InputError
from qplan.jobs.options import BenchOptions
from qplan.mnn.engine.engine import MOST_TOKENS, checked_folder
from qplan.mnn.engine.requests import MOST_TEXT_BYTES
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.preflight import Preflight
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.door import check_source
from qplan.settings import Progress, Say
from qplan.verify.folder import (
    DECODE_TOKENS,
    PROMPT_TOKENS,
    REPEATS,
    Agreement,
    FolderMeasured,
    Windows,
    perplexity_of,
    ppl_eval_windows,
    windows,
)

if TYPE_CHECKING:
    from qplan.model.load import LoadedModel

_PIECE_CHARACTERS = MOST_TEXT_BYTES // 4
"""Of a text that the engine tokenizes at a time: UTF-8 has at most four bytes a character."""

_ENOUGH_S = 4.0
"""Seconds of timing after which no further repeat is begun."""


def check_bench(options: BenchOptions) -> Preflight:
    """Refuse a folder that would not run right, and a reference or text that is missing or cannot be used.

    Raises:
        InputError: about the first such input.
        PreflightError: the folder's model would crash, be refused or compute garbage.
    """
    found = checked_folder(options.folder)
    if options.reference is not None:
        check_source(options.reference)
    check_text(options.text, "--text")
    return found


def run_bench(options: BenchOptions, say: Say, progress: Progress) -> FolderMeasured:
    """Load, time, and compare.

    Args:
        options: what was asked for.
        say: called with a line about each step.
        progress: called with the sequences that are done.

    Raises:
        InputError: a folder, reference or text that cannot be used, or the two have not the same tokens.
        PreflightError: the folder's model would crash, be refused or compute garbage.
        ToolError: the engine failed.
        MeasurementError: logits that are not finite.
    """
    found = check_bench(options)
    runtime = RuntimeConfig.of_settings(found.settings, options.threads)
    context = min(found.context or MOST_TOKENS, MOST_TOKENS)
    loaded = None
    if options.reference is not None:
        from qplan.model.load import load_model  # noqa: PLC0415 - torch: not without a reference

        say(f"loading {options.reference}")
        loaded = load_model(options.reference)
        context = min(context, loaded.card.context)
    text = load_text(options.text, None if loaded is None else loaded.tokenizer, say)
    say(f"loading {options.folder} on the engine")
    with EngineSession(options.folder, runtime, context=context) as engine:
        if loaded is None:
            ids = _first(text.known_to(engine.encode, say), options.tokens, engine.encode)
        else:
            _check_same_tokens(options, engine, loaded)
            ids = reference_ids(text, loaded.tokenizer, options.tokens)
        if options.windows == "ppl_eval":
            judged = ppl_eval_windows(ids, options.tokens, found.settings)
        else:
            judged = windows(ids, options.tokens, min(options.seq_len, context))
        decode = max(1, min(DECODE_TOKENS, context // 4))
        prompt = max(1, min(PROMPT_TOKENS, context - decode))
        say(f"timing {prompt} tokens of prefill and {decode} of decode")
        speed = engine.measure_speed(prompt, decode, REPEATS, least=2, enough_s=_ENOUGH_S)
        say(f"{judged.tokens:,} tokens of {text.source}")
        if loaded is None:
            nll, agreement = _alone(engine, judged, progress), None
        else:
            nll, agreement = _beside(engine, judged, loaded, progress)
        return FolderMeasured(
            engine=engine.version,
            memory=runtime.memory,
            precision=runtime.precision,
            threads=runtime.threads,
            file_bytes=found.file_bytes,
            ram_bytes=engine.ram_bytes,
            prompt_tokens=prompt,
            prefill_tokens_per_s=speed.prefill_tokens_per_s,
            decode_tokens=decode,
            decode_tokens_per_s=speed.decode_tokens_per_s,
            text=text.source,
            windows=options.windows,
            tokens=judged.tokens,
            seq_len=judged.rows.shape[1],
            perplexity=perplexity_of(nll),
            agreement=agreement,
        )


def reference_ids(text: Text, tokenizer: Any, tokens: int) -> NDArray[np.int64]:  # noqa: ANN401
    """A text's first tokens as the reference's tokenizer makes them, without special tokens."""
    return _first(text, tokens, lambda piece: tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])


def _first(text: Text, tokens: int, encode: Callable[[str], list[int]]) -> NDArray[np.int64]:
    """At least so many tokens of a text, if it has them: whole pieces of it, one after the other.

    Of kinds of text as many of each.
    """
    if not text.kinds:
        return np.array(_first_of(text.documents, tokens, encode), np.int64)
    share = -(-tokens // len(text.documents))
    parts = (_first_of((document,), share, encode)[:share] for document in text.documents)
    return np.array([token for part in parts for token in part], np.int64)


def _first_of(documents: tuple[str, ...], tokens: int, encode: Callable[[str], list[int]]) -> list[int]:
    found: list[int] = []
    for document in documents:
        for start in range(0, len(document), _PIECE_CHARACTERS):
            if len(found) >= tokens:
                break
            found += encode(document[start : start + _PIECE_CHARACTERS].replace("\0", ""))
    return found


def _check_same_tokens(options: BenchOptions, engine: EngineSession, loaded: LoadedModel) -> None:
    """Refuse a reference whose tokens mean something else than the folder's.

    Raises:
        InputError: another vocabulary, or another tokenizer.
    """
    from qplan.verify.same_tokens import OTHER_REFERENCE, require_same_tokens  # noqa: PLC0415 - not without a reference

    if engine.vocabulary != loaded.card.vocabulary:
        msg = (
            f"{options.folder} has {engine.vocabulary:,} logits a token, and {options.reference} has "
            f"{loaded.card.vocabulary:,}: they are not of one model; {OTHER_REFERENCE}"
        )
        raise InputError(msg)
    require_same_tokens(engine, loaded.tokenizer, options.folder, str(options.reference), "logits")


def _alone(engine: EngineSession, judged: Windows, progress: Progress) -> list[NDArray[np.float64]]:
    """Negative log-likelihoods of the text, by row."""
    found = []
    for number, row in enumerate(judged.rows):
        found.append(judged.nll(engine.logits(row), number))
        progress(number + 1, len(judged.rows))
    return found


def _beside(
    engine: EngineSession, judged: Windows, loaded: LoadedModel, progress: Progress
) -> tuple[list[NDArray[np.float64]], Agreement]:
    """Negative log-likelihoods of the text by row, and how far the folder is from the reference."""
    from qplan.sensitivity.kept_logits import kept_logits  # noqa: PLC0415 - torch: not without a reference
    from qplan.verify.agreement import agreement_with  # noqa: PLC0415

    count = len(judged.rows)
    # both go over the text once
    with kept_logits(loaded, judged.rows, lambda done, _: progress(done, 2 * count)) as reference:
        return agreement_with(reference, judged, engine.logits, lambda done, _: progress(count + done, 2 * count))
