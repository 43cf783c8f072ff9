"""Run in a child process: MNN's engine with one model. Argument: file for what the engine prints.

Reads one JSON request a line from standard input and answers with one JSON line, with the request's ``id``, on the
original standard output. Logits travel as files that the parent names: float32, row by row, in the machine's order of
bytes. Not part of the package's import graph: no qplan, no torch.
"""

import codecs
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Request = dict[str, Any]
Answer = dict[str, Any]

WARM_UP_STEPS = 4
"""Tokens decoded before anything is timed."""


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not report it."""
    try:
        fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back_freed() -> None:
    """Give freed memory back to the system, where the allocator can.

    Otherwise the process keeps some of what loading needed for a while, by the order of its allocations: 8 MB of 69
    were measured.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


class Session:
    """One loaded model."""

    def __init__(self, config_path: str, settings: Request) -> None:
        """Load, check the engine's status, and run one token: a broken graph crashes here and not later."""
        # prints when imported: not before main() has moved the output; "from MNN import llm" is another, native module
        mnn_llm = importlib.import_module("MNN.llm")
        before = resident_bytes()
        self.llm = mnn_llm.create(config_path)
        # settings must be set before load; the log likelihood needs every position's logits
        self.llm.set_config(settings | {"all_logits": True, "sampler_type": "greedy", "use_template": False})
        started = time.perf_counter()
        self.llm.load()
        self.load_s = time.perf_counter() - started
        self._check("the engine did not load the model")
        give_back_freed()
        self.ram_bytes = resident_bytes() - before
        self.vocabulary = int(self._forward([0]).shape[-1])

    def _check(self, what: str) -> None:
        status = int(self.llm.context.status)
        if status not in (0, 1, 2):  # running, finished, finished at the limit
            msg = f"{what}: status {self.llm.context.status!r}"
            raise RuntimeError(msg)

    def _forward(self, ids: list[int], *, fresh: bool = True) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Logits ``[tokens, vocabulary]``; a copy, so that no engine variable outlives the call."""
        if fresh:
            self.llm.reset()
            self.llm.generate_init()
        var = self.llm.forward(ids)
        self._check("the engine failed in a forward pass")
        values = np.array(var.read(), dtype=np.float32)
        del var
        return values.reshape(-1, values.shape[-1])

    def logits(self, request: Request) -> Answer:
        """One pass over all tokens."""
        return self._written(self._forward(request["ids"]), request)

    def stepwise(self, request: Request) -> Answer:
        """Token by token through the KV cache: the path that generation takes."""
        rows = [self._forward([token], fresh=step == 0) for step, token in enumerate(request["ids"])]
        return self._written(np.concatenate(rows), request)

    def in_parts(self, request: Request) -> Answer:
        """Passes over so many tokens each, one after the other through the KV cache."""
        ids, found, start = request["ids"], [], 0
        for count in request["parts"]:
            found.append(self._forward(ids[start : start + count], fresh=start == 0))
            start += count
        return self._written(np.concatenate(found), request)

    def score(self, request: Request) -> Answer:
        """Log-probabilities of wanted tokens, in nats, and whether each is the likeliest; the logits stay here.

        In passes over so many tokens each; those that end before the first wanted position make no logits but a last.
        """
        ids, wanted = request["ids"], [(int(position), int(token)) for position, token in request["wanted"]]
        first, start, found = min(position for position, _ in wanted), 0, {}
        for count in request["parts"]:
            end = start + count
            every = end > first
            values = self._forward_for(ids[start:end], fresh=start == 0, every=every)
            base = end - len(values)
            found.update({(at, token): _scored(values[at - base], token) for at, token in wanted if base <= at < end})
            start = end
        return {"scores": [found[pair] for pair in wanted]}

    def _forward_for(self, ids: list[int], *, fresh: bool, every: bool) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Logits of every position ``[tokens, vocabulary]``, or of the last one ``[1, vocabulary]``."""
        self.llm.set_config({"all_logits": every})
        try:
            values = self._forward(ids, fresh=fresh)
        finally:
            self.llm.set_config({"all_logits": True})
        return values if every else values[-1:]

    @staticmethod
    def _written(values: "np.ndarray[Any, np.dtype[np.float32]]", request: Request) -> Answer:
        values.tofile(request["path"])
        return {"shape": values.shape}

    def encode(self, request: Request) -> Answer:
        """Token ids of a text."""
        return {"ids": [int(token) for token in self.llm.tokenizer_encode(request["prompt"])]}

    def chat(self, request: Request) -> Answer:
        """A message in the model's chat template, as the engine renders it; as it is where there is none."""
        return {"text": str(self.llm.apply_chat_template(request["prompt"]))}

    def begin(self, request: Request) -> Answer:
        """Prefill; greedy steps follow, one per request."""
        self.llm.reset()
        self.llm.generate_init()
        self.text = codecs.getincrementaldecoder("utf-8")("replace")
        return self._step(request["ids"])

    def step(self, request: Request) -> Answer:
        """Continue with one token."""
        return self._step([request["token"]])

    def _step(self, ids: list[int]) -> Answer:
        """The likeliest token after ``ids``, the text that it completes, and the seconds of the pass."""
        self.llm.set_config({"all_logits": False})
        try:
            started = time.perf_counter()
            values = self._forward(ids, fresh=False)
            seconds = time.perf_counter() - started
        finally:
            self.llm.set_config({"all_logits": True})
        last = _finite(values[-1])
        token = int(last.argmax())
        return {"token": token, "text": self.text.decode(self._bytes(token)), "seconds": seconds}

    def _bytes(self, token: int) -> bytes:
        try:
            return str(self.llm.tokenizer_decode(token)).encode()
        except UnicodeDecodeError as error:  # part of a character: the next token completes it
            return bytes(error.object)

    def speed(self, request: Request) -> Answer:
        """Seconds of each prefill and of each decoded token, logits of the last position only.

        After ``least`` of them, repeats end where they have taken ``enough_s``.
        """
        prompt, steps = request["ids"], int(request["decode_tokens"])
        prefill: list[float] = []
        decode: list[float] = []
        clock = time.thread_time if request["own_time"] else time.perf_counter
        self.llm.set_config({"all_logits": False})
        try:
            if request["warm_up"]:
                self._timed_sequence(prompt, min(steps, WARM_UP_STEPS), clock)
            for repeat in range(request["repeats"]):
                if repeat >= request["least"] and sum(prefill) + sum(decode) >= request["enough_s"]:
                    break
                first, others = self._timed_sequence(prompt, steps, clock)
                prefill.append(first)
                decode += others
        finally:
            self.llm.set_config({"all_logits": True})
        return {"prefill_s": prefill, "decode_s": decode}

    def _timed_sequence(self, prompt: list[int], steps: int, clock: Callable[[], float]) -> tuple[float, list[float]]:
        self.llm.reset()
        self.llm.generate_init()
        first = self._timed(prompt, clock)
        return first, [self._timed([prompt[step % len(prompt)]], clock) for step in range(steps)]

    def _timed(self, ids: list[int], clock: Callable[[], float]) -> float:
        started = clock()
        var = self.llm.forward(ids)
        seconds = clock() - started
        self._check("the engine failed in a forward pass")
        del var
        return seconds


def _finite(logits: "np.ndarray[Any, np.dtype[np.float32]]") -> "np.ndarray[Any, np.dtype[np.float32]]":
    if not np.isfinite(logits).all():
        msg = "logits that are not finite: the model's weights or widths are wrong, see qplan check"
        raise RuntimeError(msg)
    return logits


def _scored(logits: "np.ndarray[Any, np.dtype[np.float32]]", token: int) -> tuple[float, bool]:
    """Log-probability of a token in nats, and whether it is the likeliest."""
    row = _finite(logits).astype(np.float64)
    largest = row.max()
    return float(row[token] - largest - np.log(np.exp(row - largest).sum())), int(logits.argmax()) == token


def answer(state: dict[str, Session], request: Request) -> Answer:
    """Answer one request."""
    command = request["command"]
    if command == "load":
        session = state["session"] = Session(request["config"], request["settings"])
        return {
            "version": version("MNN"),
            "ram_bytes": session.ram_bytes,
            "load_s": session.load_s,
            "vocabulary": session.vocabulary,
        }
    session = state["session"]
    commands: dict[str, Callable[[Request], Answer]] = {
        "logits": session.logits,
        "stepwise": session.stepwise,
        "in_parts": session.in_parts,
        "score": session.score,
        "speed": session.speed,
        "encode": session.encode,
        "chat": session.chat,
        "begin": session.begin,
        "step": session.step,
    }
    return commands[command](request)


def main() -> None:
    """Serve requests until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()  # a native crash leaves its Python line as last words
    state: dict[str, Session] = {}
    for line in sys.stdin:
        request = json.loads(line)
        reply: Answer = {"id": request["id"]}
        try:
            reply["ok"] = answer(state, request)
        except Exception as error:  # noqa: BLE001 - goes to the parent, which raises it
            reply["error"] = f"{type(error).__name__}: {error}"
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    # the model must go before the interpreter does, or the engine crashes
    state.clear()
    gc.collect()


if __name__ == "__main__":
    main()
