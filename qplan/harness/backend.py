"""lm-evaluation-harness's model ``mnn``: an MNN model folder on the real engine. Importing this registers it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from qplan.errors import InputError
from qplan.harness.scoring import Continuation, continuation, shared_passes
from qplan.harness.special import SpecialTokens, special_tokens
from qplan.mnn.engine.engine import Engine, checked_folder
from qplan.mnn.runtime import RuntimeConfig

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MOST_GENERATED = 256
"""Tokens of an answer where a task does not say; the harness's own number."""

Likelihood = tuple[float, bool]
"""Log-likelihood in nats, and whether the engine would generate just that."""


@register_model("mnn")
class MnnLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """An MNN model folder; close it, or use it in a ``with`` block, to end its engine.

    Tokens are those of the engine's own tokenizer, computed with the folder's own settings: what users of the folder
    get. Requests whose inputs begin another's share its pass; MNN's Python API cannot take a cache back to where
    another continuation could begin, so others do not.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int | None = None,
        max_length: int | None = None,
        tokenizer: str | None = None,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Check a folder and load it.

        Args:
            folder: the MNN model folder.
            threads: of the engine; None for the folder's own.
            max_length: longest sequence in tokens; None for what the folder says.
            tokenizer: Hugging Face folder or hub id to encode with and to take the chat template from; None for the
                engine's own tokenizer, without a chat template.
            prefix_token_id: token that stands before a text without a context; None for the one that a text begins
                with, or else the one that ends it.
            batch_size: 1 or ``auto``: the engine computes one sequence at a time.
            max_batch_size: of ``auto``; says nothing here.
            device: the harness's own command always gives one; MNN runs on the processor.

        Raises:
            InputError: no such folder, or an argument that the engine cannot follow.
            PreflightError: the model would crash, be refused or compute garbage.
            ToolError: the engine does not load it.
        """
        super().__init__()
        _check_batches(batch_size)
        self.runtime = RuntimeConfig.of_settings(checked_folder(Path(folder)).settings, threads)
        self.engine = Engine(folder, self.runtime, context=max_length)
        self.max_length = self.engine.context
        self.max_batch_size, self._device = max_batch_size, device
        self.tokenizer = None if tokenizer is None else _tokenizer(tokenizer)
        self._special: SpecialTokens = special_tokens(self.engine)
        self._prefix = prefix_token_id

    @property
    def tokenizer_name(self) -> str:
        """Tells caches of requests apart."""
        return str(self.engine.folder if self.tokenizer is None else self.tokenizer.name_or_path)

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        return self._special.end if self.tokenizer is None else int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Token that stands before a text that is scored without a context: the first of a text, or else the last."""
        if self._prefix is not None:
            return self._prefix
        if self.tokenizer is None:
            return self._special.first
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:  # noqa: FBT001
        """Token ids of a text, with the special tokens that every text begins with unless they are not wanted.

        Raises:
            InputError: a text that the tokenizer cannot take.
        """
        start = self._special.start
        if self.tokenizer is not None:
            own = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            return [int(token) for token in self.tokenizer.encode(string, **own)]
        ids = self.engine.encode(string) if string else list(start)
        return ids[len(start) :] if add_special_tokens is False else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: FBT001, FBT002
        """A conversation as a text.

        Raises:
            InputError: the chat template is in a Hugging Face tokenizer, and none was given.
        """
        if self.tokenizer is None:
            msg = "a chat template needs the Hugging Face tokenizer of the model: add tokenizer=MODEL to --model_args"
            raise InputError(msg)
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: FBT001, FBT002
        """Log-likelihood of whole texts in nats, each token once, in windows as long as the context."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            found = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += found
            owners += [owner] * len(found)
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += nats
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: FBT001, FBT002
        """Greedy continuations, each up to a stop string, the end of the text, or the task's number of tokens.

        Raises:
            InputError: a task that samples, or more tokens than the context has room for.
        """
        found = []
        for request in tqdm(requests, "generating", disable=disable_tqdm):
            context, settings = request.args
            answer = self._generated(context, settings)
            found.append(answer)
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return found

    def close(self) -> None:
        """End the engine's process."""
        self.engine.close()

    def __enter__(self) -> Self:
        """Return itself, loaded."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the engine's process."""
        self.close()

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,  # noqa: FBT001, FBT002
        **_: object,
    ) -> list[Likelihood]:
        """Score continuations, in the order of the requests."""
        asked = [continuation(context, targets, self.max_length) for _, context, targets in requests]
        found: list[Likelihood] = [(0.0, False)] * len(asked)
        for one in tqdm(shared_passes(asked), "scoring", disable=disable_tqdm):
            answers = self._scored(one.inputs, [asked[member] for member in one.members])
            for member, answer in zip(one.members, answers, strict=True):
                found[member] = answer
                text = requests[member][0]
                if text is not None:  # windows of a longer text are no requests of their own
                    self.cache_hook.add_partial("loglikelihood", text, answer)
        return found

    def _scored(self, inputs: tuple[int, ...], members: Sequence[Continuation]) -> list[Likelihood]:
        wanted = sorted({pair for member in members for pair in member.wanted})
        scores = dict(zip(wanted, self.engine.score(list(inputs), wanted), strict=True))
        return [
            (
                sum(scores[pair].log_probability_nats for pair in member.wanted),
                all(scores[pair].likeliest for pair in member.wanted),
            )
            for member in members
        ]

    def _generated(self, context: str, settings: dict[str, Any]) -> str:
        known = normalize_gen_kwargs(settings, MOST_GENERATED)
        if known["do_sample"]:
            msg = "the task samples (do_sample, temperature), and mnn takes the likeliest token; set do_sample=False"
            raise InputError(msg)
        most = known["max_gen_toks"]
        room = self.max_length - most
        if room < 1:
            msg = f"max_gen_toks {most:,} leaves no room for a prompt in the context of {self.max_length:,}; lower it"
            raise InputError(msg)
        stops = handle_stop_sequences(known["until"], eos=None)
        ids = self.tok_encode(context) or [self.prefix_token_id]
        text = ""
        for piece in self.engine.generate(ids[-room:], most):
            text += piece
            if any(stop and stop in text for stop in stops):
                break
        return str(postprocess_generated_text(text, stops, None))


def _check_batches(batch_size: int | str | None) -> None:
    """Refuse batches, which the engine cannot compute.

    Raises:
        InputError: several sequences at a time.
    """
    if str(batch_size) not in {"None", "1"} and not str(batch_size).startswith("auto"):
        msg = f"batch_size {batch_size}: MNN's engine computes one sequence at a time; leave it out, or give 1"
        raise InputError(msg)


def _tokenizer(source: str) -> Any:  # noqa: ANN401 - transformers' type depends on the model
    from transformers import AutoTokenizer  # noqa: PLC0415 - not without one

    return AutoTokenizer.from_pretrained(source)
