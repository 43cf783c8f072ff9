"""A model, and texts of two domains to fit rounding to and to judge it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import qplan.demo
from qplan.calibration import load_text, tokenize
from qplan.formats import FP16, QuantFormat
from qplan.model.load import LoadedModel, load_model
from qplan.rounding.moments import Moments, gather_moments
from qplan.rounding.rounder import Rounder
from qplan.rounding.stored_cache import StoredCache
from qplan.roundings import needs_tokens
from qplan.run.calibration import CalibrationSet
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import apply_formats
from qplan.verify.reference import torch_logits

SEQ_LEN = 256
JUDGE_ROWS, TEST_ROWS = 16, 8
BLOCK = 64


@dataclass(frozen=True)
class Domain:
    """Three sets of tokens of one kind of text, ``[rows, SEQ_LEN]`` each, which do not overlap."""

    fit: Tensor
    """Tokens that rounding is fitted to."""
    judge: Tensor
    """Tokens that ``auto`` chooses by."""
    test: Tensor
    """Tokens that losses are measured on."""


@dataclass(frozen=True)
class Subject:
    """One model of the benchmark."""

    loaded: LoadedModel
    home: str
    """The domain of most figures."""
    domains: Mapping[str, Domain]
    """``prose`` and ``code``."""

    def formats(self, bits: int) -> dict[str, QuantFormat]:
        """Every linear at one width, a tied head at 8 bits where it cannot have it."""
        found = {}
        for spec in self.loaded.card.tensors:
            asked = QuantFormat(bits, BLOCK).resolve(spec.in_features)
            found[spec.name] = asked if spec.allows(asked) else QuantFormat(8, BLOCK).resolve(spec.in_features)
        return found

    def moments(self, tokens: Tensor, folder: Path) -> Moments:
        """Second moments of all inputs on some tokens."""
        return gather_moments(self.loaded, tokens, folder, inputs={"rows": str(len(tokens))}, batch_size=8)

    def head_moments(self, tokens: Tensor) -> Tensor:
        """Second moments of the head's inputs alone, without the lookups of an embedding tied to it."""
        head = self.loaded.head
        total = torch.zeros(head.in_features, head.in_features, dtype=torch.float64)

        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].flatten(0, -2)
            total.add_(rows.T @ rows)

        hook = head.register_forward_pre_hook(add)
        try:
            for batch in tokens.split(8):
                self.loaded.logits(batch)
        finally:
            hook.remove()
        return (total / tokens.numel()).to(torch.float32)

    def rounder(self, how: str, moments: Moments, judge: Moments, folder: Path) -> Rounder:
        """A rounder that keeps its tensors in a folder."""
        fitted = needs_tokens(how)
        cache = StoredCache(folder / how, {"rounding": how})
        return Rounder(self.loaded, how, moments if fitted else None, judge if how == "auto" else None, cache)

    def torch_nats(self, rounder: Rounder, bits: int, reference: KeptLogits) -> float:
        """Loss of all linears at one width under memory normal, computed by torch."""
        stored = StoredWeights(self.loaded, rounder)
        with apply_formats(self.loaded, self.formats(bits), "normal", stored=stored, engine_embedding=True):
            return reference.compare(lambda ids: torch_logits(self.loaded, ids)).kl_nats


def windows_of(loaded: LoadedModel) -> partial[CalibrationSet]:
    """Cuts a text into windows for a model, as `tokenize` does with what is left to say."""
    return partial(
        tokenize,
        tokenizer=loaded.tokenizer,
        seq_len=SEQ_LEN,
        seed=0,
        context=loaded.card.context,
        vocabulary=loaded.card.vocabulary,
    )


def decoder_formats(loaded: LoadedModel, bits: int) -> dict[str, QuantFormat]:
    """The decoder's linears at one width, the head in fp16."""
    return {one.name: FP16 if one.layer is None else QuantFormat(bits, BLOCK) for one in loaded.card.tensors}


def load_subject(model: Path | None, fit_tokens: int, wikitext: Path | None) -> Subject:
    """Load a model, None for the embedded one, with code and, if WikiText-2 is given, prose."""
    loaded = load_model(str(model or Path(qplan.demo.__file__).parent / "stdlib-3m"))
    code = _windows(loaded, "python-stdlib", fit_tokens)
    domains = {"code": Domain(*code)}
    if wikitext is not None:
        fit, judge, _ = _windows(loaded, str(wikitext / "valid.txt"), fit_tokens)
        domains["prose"] = Domain(fit, judge, _windows(loaded, str(wikitext / "test.txt"), 0)[2])
    return Subject(loaded, "prose" if model is not None and wikitext is not None else "code", domains)


def _windows(loaded: LoadedModel, text: str, fit_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    found = windows_of(loaded)(load_text(text, loaded.tokenizer), samples=JUDGE_ROWS, fit_tokens=fit_tokens)
    return torch.from_numpy(found.fit), torch.from_numpy(found.tokens), torch.from_numpy(found.heldout[:TEST_ROWS])
