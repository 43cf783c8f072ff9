"""Tables of the report as rows of values, the same for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qplan.cost.file_bytes import FileBytes
from qplan.cost.work import spell_time
from qplan.report import notation
from qplan.report.felt import predicted_time_against, time_against
from qplan.report.notation import quotient
from qplan.report.summary import Contender, name_of
from qplan.report.words import ENGLISH, Words
from qplan.run.plan import Plan
from qplan.run.speeds import Phase
from qplan.run.took import Took
from qplan.run.verification import Accuracy, Speed
from qplan.settings import MEMORIES


@dataclass(frozen=True)
class Row:
    """A property of every model that is compared."""

    label: str
    values: tuple[str, ...]
    """One per model, already in their notation."""


@dataclass(frozen=True)
class RowGroup:
    """Rows under one heading."""

    title: str
    rows: tuple[Row, ...]


def sizes_and_speeds(
    models: Sequence[Contender], base: Contender | None, words: Words = ENGLISH
) -> tuple[RowGroup, ...]:
    """Sizes, memory, speed and accuracy of every model; rows in which no model has a value are left out."""

    def file_row(label: str, part: Callable[[FileBytes], int | None]) -> Row:
        return Row(label, tuple(notation.size(None if m.files is None else part(m.files)) for m in models))

    def speed_row(label: str, part: Callable[[Speed], float], write: Callable[[float | None], str]) -> Row:
        return Row(label, tuple(write(None if m.speed is None else part(m.speed)) for m in models))

    files = [Row(words("All that ships"), tuple(notation.size(m.total_bytes) for m in models))]
    if base is not None:
        label = words("against {base}", base=base.label)
        files.append(Row(label, tuple(_share(m.total_bytes, base.total_bytes) for m in models)))
    files += [
        file_row("llm.mnn.weight", lambda f: f.weight),
        file_row(words("llm.mnn, the graph"), lambda f: f.graph),
        file_row(words("embedding"), lambda f: f.embedding or None),
    ]

    def time_row(phase: Phase) -> list[Row]:
        """Times over the baseline's; predicted where the plan was not built."""
        if base is None:
            return []
        if phase == "prefill":
            label = words("prefill time against {base}", base=base.label)
        else:
            label = words("decode time against {base}", base=base.label)
        cells = []
        for model in models:
            cell = notation.MISSING
            if model.speed is not None and base.speed is not None:
                cell = time_against(model.speed, base.speed, phase, words)
            elif models[0].speed is None and model.footprint is not None and base.footprint is not None:
                cell = predicted_time_against(model.footprint, base.footprint, phase)
            cells.append(cell)
        return [Row(label, tuple(cells))]

    predicted_ram = [None if m.footprint is None else m.footprint.ram_bytes for m in models]
    speeds = [
        speed_row(words("RAM to load"), lambda s: s.ram_bytes, notation.size),
        Row(words("RAM of the weights, predicted"), tuple(map(notation.size, predicted_ram))),
        speed_row(words("Prefill, tokens/s"), lambda s: s.prefill_tokens_per_s, notation.speed),
        *time_row("prefill"),
        speed_row(words("Decode, tokens/s"), lambda s: s.decode_tokens_per_s, notation.speed),
        *time_row("decode"),
    ]
    groups = [(words("Files"), files), (_speed_title(models, words), speeds)]
    groups += [
        (words("Accuracy, memory {memory}", memory=memory), _accuracy_rows(models, base, memory, words))
        for memory in MEMORIES
    ]
    kept = ((title, tuple(r for r in rows if set(r.values) != {notation.MISSING})) for title, rows in groups)
    return tuple(RowGroup(title, rows) for title, rows in kept if rows)


def _share(value: float | None, base: float | None) -> str:
    return notation.ratio(quotient(value, base))


def _speed_title(models: Sequence[Contender], words: Words) -> str:
    settings = {(s.memory, s.threads, s.prompt_tokens) for s in (m.speed for m in models) if s is not None}
    if len(settings) != 1:
        return words("Speed and memory")
    memory, threads, prompt = settings.pop()
    values = {"threads": threads, "prompt": prompt, "memory": memory}
    if threads == 1:
        return words("Speed and memory: {threads} thread, prompt of {prompt} tokens, memory {memory}", **values)
    return words("Speed and memory: {threads} threads, prompt of {prompt} tokens, memory {memory}", **values)


def _accuracy_rows(models: Sequence[Contender], base: Contender | None, memory: str, words: Words) -> list[Row]:
    def row(
        label: str, part: Callable[[Accuracy], float], write: Callable[[float | None], str], path: str = "prefill"
    ) -> Row:
        found = (_accuracy(m, memory, path) for m in models)
        return Row(label, tuple(write(None if a is None else part(a)) for a in found))

    reference = _accuracy(base, memory)
    rows = [row(words("KL, one pass (prefill)"), lambda a: a.kl_nats, notation.loss)]
    if base is not None and reference is not None:
        limit = reference.kl_nats
        rows.append(
            row(words("against {base}", base=base.label), lambda a: a.kl_nats, lambda nats: _share(nats, limit))
        )
    return [
        *rows,
        row(words("KL, token by token (decode)"), lambda a: a.kl_nats, notation.loss, "decode"),
        row(words("KL, 99th percentile"), lambda a: a.kl_p99_nats, notation.loss),
        row(words("Same top token"), lambda a: a.top1, notation.percent),
        row(words("Perplexity"), lambda a: a.perplexity, notation.perplexity),
    ]


def _accuracy(model: Contender | None, memory: str, path: str = "prefill") -> Accuracy | None:
    return None if model is None or model.built is None else model.built.accuracy(memory, path)


@dataclass(frozen=True)
class RivalRow:
    """A uniform model within the plan's limits."""

    label: str
    size: str
    heldout: str
    """Loss of its whole model in torch, while the plan was chosen."""
    engine: str
    against: str
    """The plan's loss on the engine in that of this model."""
    command: str


def rivals(plan: Plan, models: Sequence[Contender]) -> tuple[RivalRow, ...]:
    """The best uniform models within the plan's limits, the best first, built or not."""
    built = {model.name: model for model in models}
    rows = []
    for rival in plan.rivals:
        model = built.get(rival.name)
        engine, own = None if model is None else model.measured_nats, models[0].measured_nats
        rows.append(
            RivalRow(
                rival.name.upper(),
                notation.size(rival.total_bytes),
                notation.loss(rival.heldout_nats),
                notation.loss(engine),
                _share(own, engine),
                rival.command,
            )
        )
    return tuple(rows)


@dataclass(frozen=True)
class PredictionRow:
    """How well a model's loss was predicted, under one memory setting."""

    label: str
    is_plan: bool
    memory: str
    predicted: str
    emulated: str
    engine: str
    decode: str
    """Loss on the engine, token by token."""
    engine_to_predicted: str
    engine_to_emulated: str


def predictions(models: Sequence[Contender], words: Words = ENGLISH) -> tuple[PredictionRow, ...]:
    """Every model under every memory setting with anything measured or predicted; sums hold for the plan's setting."""
    rows = []
    for memory in dict.fromkeys((models[0].memory, *MEMORIES)):
        for model in models:
            predicted = model.predicted_nats if memory == model.memory else None
            emulated = None if model.built is None else model.built.emulated_nats.get(memory)
            engine, decode = _accuracy(model, memory), _accuracy(model, memory, "decode")
            if predicted is None and emulated is None and engine is None:
                continue
            measured = None if engine is None else engine.kl_nats
            rows.append(
                PredictionRow(
                    name_of(model, words),
                    model.is_plan,
                    memory,
                    notation.loss(predicted),
                    notation.loss(emulated),
                    notation.loss(measured),
                    notation.loss(None if decode is None else decode.kl_nats),
                    _share(measured, predicted),
                    _share(measured, emulated),
                )
            )
    return tuple(rows)


@dataclass(frozen=True)
class OptionRow:
    """The built plan with one of MNN's ``dynamic_option``, memory low."""

    label: str
    prefill: str
    """Loss in one pass per sequence."""
    decode: str
    """Loss token by token."""
    prefill_speed: str
    decode_speed: str
    ships: bool


def dynamic_options(plan: Contender, words: Words = ENGLISH) -> tuple[OptionRow, ...]:
    """What a scale per block of the activations buys and costs; empty where it was not measured."""
    model = plan.built
    if model is None or model.speed is None or model.other_speed is None:
        return ()
    names = {0: words("0: a scale per token"), 2: words("2: a scale per token and block")}
    rows = []
    for speed in sorted((model.speed, model.other_speed), key=lambda speed: speed.dynamic_option):
        option = speed.dynamic_option
        losses = (model.accuracy("low", path, option) for path in ("prefill", "decode"))
        prefill, decode = (notation.loss(None if loss is None else loss.kl_nats) for loss in losses)
        rates = (notation.speed(speed.prefill_tokens_per_s), notation.speed(speed.decode_tokens_per_s))
        rows.append(OptionRow(names[option], prefill, decode, *rates, option == model.dynamic_option))
    return tuple(rows)


def taken(took: Took, words: Words = ENGLISH) -> str:
    """What a command took of the machine, in a sentence."""
    values = {
        "command": f"qplan {took.command}",
        "time": spell_time(took.seconds),
        "memory": notation.size(took.peak_bytes),
    }
    if took.resumed:
        return words("{command}: {time} since it was last resumed, a process took {memory} of memory at most", **values)
    return words("{command}: {time}, a process took {memory} of memory at most", **values)


def price_of_the_logits_rule(plan: Plan, words: Words = ENGLISH) -> str:
    """The rule and its price, in words."""
    rule = plan.logits
    heads = [tensor for tensor in plan.tensors if tensor.layer is None and not tensor.is_embedding]
    names = ", ".join(tensor.kind for tensor in heads) or words("the head")
    now = ", ".join(dict.fromkeys(tensor.format.name for tensor in heads)) or notation.MISSING
    stored = words("The plan stores it as {format}.", format=now)
    if rule.price_nats == 0:
        price = words("The rule did not bind: without it the plan would be the same, so its price is zero.")
    else:
        price = _price(plan, words)
    return words.join(_rule(plan, names, words), stored, price)


def _rule(plan: Plan, names: str, words: Words) -> str:
    rule = plan.logits
    if rule.min_bits and rule.at_least_mean:
        return words(
            "The rule keeps what makes the logits ({names}) at {bits} bits or more and at or above the size-weighted "
            "mean width of the other tensors.",
            names=names,
            bits=rule.min_bits,
        )
    if rule.min_bits:
        return words(
            "The rule keeps what makes the logits ({names}) at {bits} bits or more.", names=names, bits=rule.min_bits
        )
    if rule.at_least_mean:
        return words(
            "The rule keeps what makes the logits ({names}) at or above the size-weighted mean width of the other "
            "tensors.",
            names=names,
        )
    return words("No rule was set.")


def _price(plan: Plan, words: Words) -> str:
    rule = plan.logits
    values = {"format": rule.head_format_without, "price": notation.loss(abs(rule.price_nats))}
    share = quotient(abs(rule.price_nats), plan.predicted_nats)
    of_all = "" if share is None else words(", {share} of the whole", share=notation.percent(share))
    if rule.price_nats > 0:
        return words(
            "Without it, at the same budget, the head would be {format}; the rule costs {price} nats/token of "
            "predicted loss{of_all}.",
            of_all=of_all,
            **values,
        )
    return words(
        "Without it, at the same budget, the head would be {format}; the rule saves {price} nats/token of predicted "
        "loss{of_all}.",
        of_all=of_all,
        **values,
    )
