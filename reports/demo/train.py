"""Trains the embedded demo model from the text of the running Python's standard library.

Run as ``python -m reports.demo.train``. On two CPU cores it takes about half an hour; nothing is downloaded.
"""

import argparse
import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from reports.demo import artifacts, corpus, perplexity
from reports.demo.corpus import Module, Split
from reports.demo.loop import Outcome, Recipe, fit
from reports.demo.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, train_tokenizer

_LOG = logging.getLogger(__name__)

_MODEL_FOLDER = "qplan/demo/stdlib-3m"
_TRAINING_FILE = "qplan/demo/training.json"
_HELDOUT_FILE = "qplan/demo/heldout.txt"
_CALIBRATION_FOLDER = "calib/python-stdlib"
_COMMAND = "python -m reports.demo.train"

_CALIBRATION_BYTES = 250_000
_HELDOUT_BYTES = 220_000

_KEPT_LOG_LINES = 10
_END_OF_TEXT_ID = SPECIAL_TOKENS.index(END_OF_TEXT)


def model_config(vocab_size: int) -> Qwen2Config:
    """Returns the architecture: Qwen2.5's, at a size of about three million parameters."""
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=_END_OF_TEXT_ID,
        eos_token_id=_END_OF_TEXT_ID,
    )


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> torch.Tensor:
    """Encodes documents into one token stream, in a seeded order, each followed by the end-of-text token."""
    encoded = tokenizer.encode_batch(list(texts))
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed))
    stream: list[int] = []
    for index in order.tolist():
        stream += [*encoded[index].ids, _END_OF_TEXT_ID]
    return torch.tensor(stream, dtype=torch.long)


def evaluate(model: PreTrainedModel, tokenizer: Tokenizer, stream: torch.Tensor, heldout: str) -> dict[str, object]:
    """Measures the held-out perplexity with the weights as stored (fp16 values, fp32 arithmetic).

    Args:
        model: A model whose weights were already rounded to fp16 and are held in fp32.
        tokenizer: The model's tokenizer.
        stream: The training tokens, which the unigram model counts.
        heldout: The held-out text.
    """
    ids = tokenizer.encode(heldout).ids
    scored = perplexity.predicted_tokens(ids)
    model_ppl = perplexity.model_perplexity(model, ids)
    unigram_ppl = perplexity.unigram_perplexity(stream.tolist(), scored, model.config.vocab_size)
    return {
        "tokens": len(scored),
        "window_tokens": perplexity.WINDOW,
        "perplexity": round(model_ppl, 4),
        "unigram_perplexity": round(unigram_ppl, 4),
        "ratio": round(model_ppl / unigram_ppl, 5),
    }


def write_texts(out: Path, modules: Sequence[Module]) -> str:
    """Writes the calibration text, its manifest and the held-out text; returns the held-out text."""
    calibration = corpus.cut_text(modules, Split.CALIBRATION, _CALIBRATION_BYTES)
    manifest: Mapping[str, object] = {
        "name": "python-stdlib",
        "description": "Sources and docstrings of Python standard-library modules that the demo model was "
        "neither trained nor tested on.",
        "source": f"the standard library of Python {platform.python_version()}",
        "licence": corpus.LICENSE,
        "sha256": artifacts.sha256_of(calibration),
        "bytes": len(calibration.encode()),
        "files": ["text.txt"],
        "how_made": _COMMAND,
    }
    artifacts.write_text(out / _CALIBRATION_FOLDER / "text.txt", calibration)
    artifacts.write_json(out / _CALIBRATION_FOLDER / "manifest.json", manifest)
    heldout = corpus.cut_text(modules, Split.HELDOUT, _HELDOUT_BYTES)
    artifacts.write_text(out / _HELDOUT_FILE, heldout)
    return heldout


def _describe_split(modules: Sequence[Module]) -> dict[str, object]:
    return {
        split.value: {
            "modules": sum(module.split is split for module in modules),
            "bytes": sum(len(text.encode()) for text in corpus.documents(modules, split)),
        }
        for split in Split
    }


def _record(recipe: Recipe, outcome: Outcome, modules: Sequence[Module], stream: torch.Tensor) -> dict[str, object]:
    train_text = "\n\n".join(corpus.documents(modules, Split.TRAIN))
    return {
        "command": f"{_COMMAND} --steps {recipe.steps} --minutes {recipe.minutes:g} --seed {recipe.seed}",
        "recipe": asdict(recipe),
        "seed": recipe.seed,
        "steps": outcome.steps,
        "ended_by": outcome.ended_by,
        "tokens_seen": outcome.tokens,
        "seconds": round(outcome.seconds, 1),
        "train_text": {
            "sha256": artifacts.sha256_of(train_text),
            "bytes": len(train_text.encode()),
            "tokens": len(stream),
            "licence": corpus.LICENSE,
        },
        "split": _describe_split(modules),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "log_tail": outcome.log[-_KEPT_LOG_LINES:],
    }


def run(out: Path, recipe: Recipe) -> dict[str, object]:
    """Collects the text, trains tokenizer and model and writes every file.

    Args:
        out: Root folder the files are written under, laid out as in the repository.
        recipe: The run's recipe.

    Returns:
        What was written to training.json.
    """
    modules = corpus.collect_modules()
    heldout = write_texts(out, modules)
    texts = corpus.documents(modules, Split.TRAIN)
    tokenizer = train_tokenizer(texts)
    stream = encode_documents(tokenizer, texts, recipe.seed)
    _LOG.info("%d documents, %d training tokens", len(texts), len(stream))
    torch.manual_seed(recipe.seed)
    model = Qwen2ForCausalLM(model_config(tokenizer.get_vocab_size()))
    outcome = fit(model, stream, recipe)
    model.half()
    artifacts.write_model(out / _MODEL_FOLDER, model, tokenizer)
    # Back to fp32: the values stay rounded, the arithmetic is exact enough to compare runs.
    model.float()
    record = _record(recipe, outcome, modules, stream)
    record["parameters"] = model.num_parameters()
    record["heldout"] = evaluate(model, tokenizer, stream, heldout)
    artifacts.write_json(out / _TRAINING_FILE, record)
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and trains; returns the exit status."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description="Train the embedded demo model.")
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=Path, default=root, help="root folder (default: the repository)")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps at most (default: 3000)")
    parser.add_argument("--minutes", type=float, default=27.0, help="training minutes at most (default: 27)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batch order (default: 0)")
    options = parser.parse_args(argv)
    if options.steps < 1 or not options.minutes > 0:
        parser.error("--steps and --minutes must be positive")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    record = run(options.out, Recipe(options.steps, options.minutes, options.seed))
    _LOG.info("held-out: %s", record["heldout"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
