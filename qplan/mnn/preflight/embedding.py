"""The embedding file and the tokenizer against the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.mnn.files import EMBEDDING_FILE, EMBEDDING_KEY, TOKENIZER_FILE
from qplan.mnn.preflight.finding import COPY_AGAIN, GARBAGE, Finding, error, warning
from qplan.mnn.preflight.model import ModelFolder


def check_embedding(model: ModelFolder) -> Iterator[Finding]:
    """Whether the untied embedding holds a row for every token."""
    head, hidden = model.head(), model.whole("hidden_size")
    path = model.path(EMBEDDING_KEY, EMBEDDING_FILE)
    if model.tied or head is None or not hidden or hidden < 0 or not path.is_file():
        return
    size, vocabulary = path.stat().st_size, head.out_features
    expected = 2 * hidden * vocabulary
    if size < expected:
        what = f"{size:,} bytes, expected {expected:,}: {vocabulary:,} tokens of {hidden} numbers"
        yield error("embedding-size", path.name, what, f"tokens without a row have {GARBAGE}", COPY_AGAIN)
    elif size > expected:
        what = f"{size / (2 * hidden):,.6g} rows for a vocabulary of {vocabulary:,}"
        effect = "right if only the head was shortened; another model's embedding means garbage without a message"
        yield warning("embedding-size", path.name, what, effect, "compare it with the folder it was copied from")


def check_tokenizer(model: ModelFolder) -> Iterator[Finding]:
    """Whether every token that a text can become has logits, and generation can stop."""
    head, tokenizer = model.head(), model.tokenizer
    if head is None or tokenizer is None:
        return
    vocabulary, file = head.out_features, model.path("tokenizer_file", TOKENIZER_FILE).name
    if tokenizer.largest_id >= vocabulary:
        what = f"its largest token is {tokenizer.largest_id:,}, the model has {vocabulary:,}"
        effect = f"texts with such tokens read beyond the embedding: {GARBAGE}"
        yield error("tokenizer-size", file, what, effect, "put the tokenizer of this model there")
    elif 2 * (tokenizer.largest_id + 1) < vocabulary:
        what = f"it has {tokenizer.largest_id + 1:,} tokens of the model's {vocabulary:,}"
        effect = "another model's tokenizer turns every text into nonsense, without a message"
        yield warning("tokenizer-size", file, what, effect, "compare it with the folder it was copied from")
    if not tokenizer.stops:
        what = "it names no token that ends a text"
        yield warning("no-stop", file, what, "generation goes on to its limit", "export the model again")
