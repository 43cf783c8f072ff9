"""Every code that a note may have, with its fields and its sentence in English.

A place in a sentence names a field and says how it is written, see `qplan.notes.sentence`. Values carry their units in
their names; shares and ratios have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import GenericAlias

FieldType = type | GenericAlias
"""``str``, ``int``, ``float``, a list of one of them, or a map from names to one of them."""


@dataclass(frozen=True)
class NoteKind:
    """What all notes of one code have in common."""

    sentence: str
    """In English, without a full stop."""
    fields: Mapping[str, FieldType]
    """Type of every field by its name; the sentence shows all of them."""


def _kind(sentence: str, **fields: FieldType) -> NoteKind:
    return NoteKind(sentence, fields)


_BLOCK_SCALES = "a scale per block of the activations (dynamic_option 2)"
_GAIN = "{prefill:.2f} times the loss in prefill and {decode:.2f} in decode (held-out tokens)"
_SPEED = "{speed:.2f} times the decode speed, limit {least_speed:.2f}"

CATALOG: Mapping[str, NoteKind] = {
    # free text: notes in artifacts of earlier versions, a path, an engine's last output
    "text": _kind("{text}", text=str),
    # of a table: what was measured, and in which weights
    "block-changed": _kind(
        "{format} became {choices:and} for {tensors:more {others}}: blocks of {block} do not divide rows of "
        "{row_weights} weights",
        format=str,
        choices=list[str],
        tensors=list[str],
        others=int,
        block=int,
        row_weights=int,
    ),
    "tied-head-unmeasured": _kind(
        "{tensor} is not measured in {formats}: it is tied to the embedding, and the engine decodes lookups correctly "
        "only at {bits} bits",
        tensor=str,
        formats=list[str],
        bits=list[int],
    ),
    "garbled-unmeasured": _kind(
        "{formats} are not measured: the engine garbles them with a scale per block (dynamic_option 2)",
        formats=list[str],
    ),
    "experts-unreached": _kind(
        "none of the tokens that losses are measured on reaches {count} experts (layer.expert: "
        "{experts:more {others}}): they share the format of the other experts in their layer; raise --samples",
        count=int,
        experts=list[str],
        others=int,
    ),
    "half-overflows": _kind(
        "layers return up to {peak:.3g}, and fp16 holds no more than {most:.0f}: on ARM under precision low the model "
        "gives infinities ({tensors:more {others}}). Ship it with --precision high",
        peak=float,
        most=float,
        tensors=list[str],
        others=int,
    ),
    "half-loses-tokens": _kind(
        "inputs of some tokens reach only {peak:.3g}, and below {least:.2g} fp16 holds no scale for their int8 codes: "
        "on ARM under precision low these become the largest ({tensors:more {others}}). Ship it with --precision high",
        peak=float,
        least=float,
        tensors=list[str],
        others=int,
    ),
    "tensors-without-loss": _kind(
        "{count} tensors lose exactly nothing in any format, because they or what reads them are zeros: "
        "{tensors:more {others}}",
        count=int,
        tensors=list[str],
        others=int,
    ),
    "too-few-tokens": _kind(
        "rounded to nearest, since fewer than {least_tokens} calibration tokens reach them: "
        "{tokens:(d) more {others}}; give a longer text, or raise --samples and --fit-tokens",
        least_tokens=int,
        tokens=dict[str, int],
        others=int,
    ),
    "partly-measured": _kind(
        "{measured} of {losses} losses were measured, those that plans depend on and the head's; the others are "
        "estimates from gradients, which saved {saved:.0%} of the measurements. Estimates were multiplied by "
        "{scale:.2f}, the mean ratio where both are known",
        measured=int,
        losses=int,
        saved=float,
        scale=float,
    ),
    "measured-within-passes": _kind(
        "{measured} of {losses} losses and {plans} whole plans were measured, which took {passes:.1f} passes "
        "({most:g} at most); the others are estimates from gradients, multiplied by what the measured ones suggest "
        "({scales:.2f}). A pass is once forwards and backwards over the calibration tokens",
        measured=int,
        losses=int,
        plans=int,
        passes=float,
        most=float,
        scales=dict[str, float],
    ),
    "menu-without-choice": _kind(
        "at {budgets} these formats leave plans no choice: only the smallest format of every tensor fits; add "
        "{narrower} to --formats",
        budgets=list[str],
        narrower=str,
    ),
    "folded": _kind(
        "weights are folded; loss of uniform models, folded over original: {ratios:.2f}", ratios=dict[str, float]
    ),
    "folding-left-out": _kind(
        "folding does not pay and is left out; loss of uniform models, folded over original: {ratios:.2f}",
        ratios=dict[str, float],
    ),
    "records-refused": _kind(
        "{refused:,} records of {source} are left out, {used:,} are used: {first}",
        refused=int,
        used=int,
        source=str,
        first=str,
    ),
    "surrogates-replaced": _kind(
        "{records:,} records of {source} held halves of surrogate pairs, which are no characters: replaced by U+FFFD",
        records=int,
        source=str,
    ),
    "script-unknown": _kind(
        "{file} of {source} is left out: the model's tokenizer takes {tokens} tokens per character of its script",
        file=str,
        source=str,
        tokens=float,
    ),
    "own-code-not-run": _kind(
        "the model's folder has code of its own for {classes}, which was not run: the classes are transformers' own",
        classes=list[str],
    ),
    "tokenizer-class-unknown": _kind(
        "tokenizer_config.json names {named}, which transformers does not know: {used} reads the tokenizer's files, "
        "and what {named} does beyond them is left out; compare the tokens of a few texts",
        named=str,
        used=str,
    ),
    "left-out-for-memory": _kind(
        "--max-memory {limit_gb:.3g} GB allowed no run on the engine of {settings:and}; logits are compared one by one "
        "after the first {layers} layers where memory normal is among these",
        limit_gb=float,
        settings=list[str],
        layers=int,
    ),
    "kv-cache": _kind(
        "the KV cache of {tokens:,} tokens is stored as {mode}: {megabytes:.1f} MB, {float_megabytes:.1f} MB in float",
        tokens=int,
        mode=str,
        megabytes=float,
        float_megabytes=float,
    ),
    "kv-int8": _kind(
        "int8 keys are right only if a conversation's first prompt comes in one pass and its answer follows token by "
        "token: give every turn the whole conversation again (reuse_kv false, no chunk)",
    ),
    "kv-values-int8": _kind(
        "int8 values are rounded by the ranges of the first prompt: short prompts before long answers lose more"
    ),
    "kv-turbo": _kind(
        "attn_scale 1 in config.json makes up for MNN 3.6.1 dividing TurboQuant's scores twice; another engine may not"
    ),
    "context-limited": _kind(
        "the model's context is limited to {tokens:,} of its {own_tokens:,} tokens, which the built model says and "
        "qplan.Engine holds to",
        tokens=int,
        own_tokens=int,
    ),
    "sequences-shortened": _kind(
        "calibration sequences have {tokens:,} tokens instead of {usual_tokens:,}: the model's context holds no more",
        tokens=int,
        usual_tokens=int,
    ),
    "setting-beyond-context": _kind(
        "{exporter} drops {setting}, which changes nothing up to {tokens:,} tokens: the built model ends there",
        exporter=str,
        setting=str,
        tokens=int,
    ),
    "setting-unmeasured": _kind(
        "nobody measured whether {exporter} is right about {setting}: 'qplan emit' finds out before it plans",
        exporter=str,
        setting=str,
    ),
    "chat-template-raises": _kind(
        "the model's chat template cannot render a single message ({error}): the built model cannot be used for chats "
        "unless that is mended",
        error=str,
    ),
    "tied-by-values": _kind(
        "{head} equals the embedding, and MNN's exporter stores equal matrices once: the two are planned as one, tied "
        "tensor",
        head=str,
    ),
    "folding-not-tried": _kind(
        "weights are not folded: the gain cannot be measured in {dtype}",
        dtype=str,
    ),
    "wide-scales": _kind("scales have 32 bits: engine {engine} reads no others", engine=str),
    # of a plan: what the planner did
    "routers-by-rule": _kind(
        "rule: routers are {format} ({count} of them); --pin '*.{name}=int8' overrides it",
        format=str,
        count=int,
        name=str,
    ),
    "routers-rounded": _kind(
        "{rounded} of {count} routers are rounded: tokens may be sent to other experts", rounded=int, count=int
    ),
    "time-limit": _kind(
        "the solver stopped at its time limit; a better plan may exist, by at most {gap:.2%}", gap=float
    ),
    "graph-estimated": _kind("the graph file's size is an estimate; build the model for the exact bytes"),
    "rows-not-of-64": _kind(
        "64 does not divide rows of {row_weights}: MNN's uniform export, the baseline, uses other blocks there",
        row_weights=list[int],
    ),
    "no-choice-left": _kind(
        "budget {budget} leaves no choice: only the smallest format of every tensor fits; analyze with {narrower} "
        "among --formats too, or raise it",
        budget=str,
        narrower=str,
    ),
    "budget-above-fp16": _kind("the budget is larger than uniform fp16"),
    "budget-does-not-bind": _kind(
        "the budget {budget} does not bind: every tensor has the best of its formats that the rules allow", budget=str
    ),
    "limits-do-not-bind": _kind("no limit binds: every tensor has the best of its formats that the rules allow"),
    "edited": _kind("edited by hand: bytes and losses were recalculated; nothing proves that the plan is the best one"),
    "over-budget": _kind(
        "{total_bytes:,} bytes: over the budget of {budget_bytes:,}", total_bytes=int, budget_bytes=int
    ),
    "over-parity": _kind(
        "predicted to take more than uniform {uniform}, which it was planned not to: {shares:.3f}",
        uniform=str,
        shares=dict[str, float],
    ),
    "uniform-not-on-target": _kind(
        "{target} does not compute uniform {uniform}, so that its RAM and speed are no limits: {uniform} limits files "
        "alone",
        target=str,
        uniform=str,
    ),
    # of a plan: what whole models said
    "uniform-within-limits": _kind("no mix within the limits is better: the plan is uniform {uniform}", uniform=str),
    "uniform-is-best": _kind(
        "no mix was better than uniform {uniform} on held-out tokens: the plan is uniform {uniform}", uniform=str
    ),
    "worse-than-uniform": _kind(
        "worse than uniform {uniform} on held-out tokens; it needs other rules or more --formats to be better",
        uniform=str,
    ),
    "nearest-for-folded": _kind(
        "the built model's scales are folded; llmexport only rounds to nearest, and with the same formats loses "
        "{times:.2f} times as much ({nats:.1e} nats per token, memory {memory})",
        times=float,
        nats=float,
        memory=str,
    ),
    "nearest-for-feedback": _kind(
        "the built model's integers are chosen by error feedback; llmexport only rounds to nearest, and with the same "
        "formats loses {times:.2f} times as much ({nats:.1e} nats per token, memory {memory})",
        times=float,
        nats=float,
        memory=str,
    ),
    "integers-tuned": _kind(
        "the integers were fitted once more, in the order of the layers, to make up for what the layers before lose: "
        "{times:.2f} times the loss ({before_nats:.1e} to {after_nats:.1e} nats per token on {tokens:,} calibration "
        "tokens that they were not fitted to, memory {memory})",
        times=float,
        before_nats=float,
        after_nats=float,
        tokens=int,
        memory=str,
    ),
    "layers-tuned": _kind(
        "the integers were fitted once more, in the order of the layers, and those of each layer trained with its "
        "scales on what it returns: {times:.2f} times the loss ({before_nats:.1e} to {after_nats:.1e} nats per token "
        "on {tokens:,} calibration tokens that they were not fitted to, memory {memory})",
        times=float,
        before_nats=float,
        after_nats=float,
        tokens=int,
        memory=str,
    ),
    "layers-and-scales-tuned": _kind(
        "the integers were fitted once more, in the order of the layers, those of each layer trained with its scales "
        "on what it returns, and then all scales end to end, on the loss of the whole model: {times:.2f} times the "
        "loss ({before_nats:.1e} to {after_nats:.1e} nats per token on {tokens:,} calibration tokens that they were "
        "not fitted to, memory {memory})",
        times=float,
        before_nats=float,
        after_nats=float,
        tokens=int,
        memory=str,
    ),
    "scales-tuned": _kind(
        "the scales were trained end to end, on the loss of the whole model: {times:.2f} times the loss "
        "({before_nats:.1e} to {after_nats:.1e} nats per token on {tokens:,} calibration tokens that they were not "
        "fitted to, memory {memory})",
        times=float,
        before_nats=float,
        after_nats=float,
        tokens=int,
        memory=str,
    ),
    "integers-and-scales-tuned": _kind(
        "the integers were fitted once more, in the order of the layers, and then the scales were trained end to end, "
        "on the loss of the whole model: {times:.2f} times the loss ({before_nats:.1e} to {after_nats:.1e} nats per "
        "token on {tokens:,} calibration tokens that they were not fitted to, memory {memory})",
        times=float,
        before_nats=float,
        after_nats=float,
        tokens=int,
        memory=str,
    ),
    "tuning-gains-nothing": _kind(
        "fitting integers or scales once more, to the plan as a whole, gains nothing beyond noise: {times:.2f} times "
        "the loss ({before_nats:.1e} to {after_nats:.1e} nats per token on {tokens:,} calibration tokens, memory "
        "{memory})",
        times=float,
        before_nats=float,
        after_nats=float,
        tokens=int,
        memory=str,
    ),
    "nearest-for-both": _kind(
        "the built model's scales are folded and its integers are chosen by error feedback; llmexport only rounds to "
        "nearest, and with the same formats loses {times:.2f} times as much ({nats:.1e} nats per token, memory "
        "{memory})",
        times=float,
        nats=float,
        memory=str,
    ),
    "limits-kept": _kind(
        "on held-out tokens the whole model loses {nats:.3e} nats per token, memory {memory}; its perplexity changes "
        "by {perplexity_change:+.3f}",
        nats=float,
        memory=str,
        perplexity_change=float,
    ),
    "promoted-or-demoted": _kind(
        "{changed} tensors were promoted or demoted after whole models were measured: on held-out tokens the plan "
        "loses {share:.3f} times as much as the one with the least sum of single losses",
        changed=int,
        share=float,
    ),
    "smaller-plan-taken": _kind(
        "formats are those of the plan {plan} of this run, which is smaller and loses {share:.3f} times as much on "
        "held-out tokens as the plan that was solved for this budget",
        plan=str,
        share=float,
    ),
    "folded-budgets": _kind(
        "budgets are those of uniform exports of the folded weights, whose graph is {more_bytes:,} bytes larger",
        more_bytes=int,
    ),
    # of a plan: its dynamic_option
    "block-scales-asked-for": _kind(f"{_BLOCK_SCALES}, as asked for: {_GAIN}", prefill=float, decode=float),
    "block-scales-gain-too-little": _kind(
        f"{_BLOCK_SCALES} has {_GAIN}: it is used only where it saves {{least_gain:.0%}} in both",
        prefill=float,
        decode=float,
        least_gain=float,
    ),
    "block-scales-not-timed": _kind(
        f"{_BLOCK_SCALES} has {_GAIN}; its cost in speed is not known until the model is built",
        prefill=float,
        decode=float,
    ),
    "block-scales-too-slow": _kind(
        f"{_BLOCK_SCALES} has {_GAIN} and {_SPEED}: too slow to be the default; --dynamic-option 2 uses it anyway",
        prefill=float,
        decode=float,
        speed=float,
        least_speed=float,
    ),
    "block-scales-against-parity": _kind(
        f"{_BLOCK_SCALES} has {_GAIN}, and takes {{times:.2f}} times the {{resource}} of uniform {{uniform}}, which "
        "the budget promises not to take: --dynamic-option 2 or --parity files uses it",
        prefill=float,
        decode=float,
        times=float,
        resource=str,
        uniform=str,
    ),
    "block-scales-taken": _kind(
        f"{_BLOCK_SCALES} has {_GAIN} and {_SPEED}: used; --dynamic-option 0 turns it off",
        prefill=float,
        decode=float,
        speed=float,
        least_speed=float,
    ),
    "block-scales-derived": _kind(
        f"{_BLOCK_SCALES} has {_GAIN} on {{target}}: used. Its speed there was not measured; by the target's data "
        "decoding takes {times:.2f} times as long, which the budget's limits count; --dynamic-option 0 turns it off",
        prefill=float,
        decode=float,
        target=str,
        times=float,
    ),
    "block-scales-garbled": _kind(
        "dynamic_option stays 0: the engine garbles {format} under 2 ({tensors:more {others}})",
        format=str,
        tensors=list[str],
        others=int,
    ),
    "losses-of-other-option": _kind(
        "predicted losses, which are sums of single losses, are those of dynamic_option {dynamic_option}",
        dynamic_option=int,
    ),
    # of a verification: what it was judged on
    "held-out-windows": _kind("held-out windows of {source}", source=str),
    # of a verification: promises
    "plan-logits": _kind("plan: the engine's logits equal torch's with the same stored weights"),
    "first-logits": _kind(
        "{model}: after the first {layers} layers, the engine's norm and head give torch's logits with the same stored "
        "weights",
        model=str,
        layers=int,
    ),
    "uniform-logits": _kind("{uniform}: the engine's logits equal torch's with the same stored weights", uniform=str),
    "same-tokens": _kind("the built tokenizer makes the tokens that Hugging Face's makes"),
    "read-back": _kind("llm.mnn read back"),
    "fits-budget": _kind("the files fit the budget"),
    "kv-loss": _kind("the KV cache loses no more than was measured before"),
    "kv-nats": _kind(
        "{nats:.3e} nats with a cache in {mode}, {float_nats:.3e} in float, limit {limit:.3e}",
        mode=str,
        nats=float,
        float_nats=float,
        limit=float,
    ),
    "kv-bytes": _kind("the engine's KV cache has the predicted bytes"),
    "kv-bytes-of": _kind(
        "{measured_bytes:,} of {predicted_bytes:,} predicted, at {tokens:,} tokens",
        measured_bytes=int,
        predicted_bytes=int,
        tokens=int,
    ),
    "predicted-bytes": _kind("weight and embedding files have the predicted bytes"),
    "emulation": _kind("{uniform}: torch's loss equals the engine's, memory {memory}", uniform=str, memory=str),
    "plan-emulation": _kind("plan: torch's loss equals the engine's, memory {memory}", memory=str),
    "not-worse": _kind("the plan is not worse than uniform {uniform}, memory {memory}", uniform=str, memory=str),
    "ram-of-uniform": _kind("the plan takes no more RAM after loading than uniform {uniform}", uniform=str),
    "decode-of-uniform": _kind("the plan decodes no slower than uniform {uniform}", uniform=str),
    "prefill-of-uniform": _kind("the plan's prefill is no slower than uniform {uniform}'s", uniform=str),
    "preflight": _kind("qplan check for engine {engine}", engine=str),
    "other-engine": _kind("engine {engine} computes what torch computes", engine=str),
    "arm-formats": _kind("{processor} computes the formats of the plan", processor=str),
    "arm-losses": _kind("the plan loses on {processor}, emulated, about what it loses on this machine", processor=str),
    # of a verification: what was found
    "relative-error": _kind("relative error {error:.1e}, limit {limit:.0e}", error=float, limit=float),
    "relative-error-of-tokens": _kind(
        "relative error {error:.1e}, limit {limit:.1e} (memory {memory}, {tokens} tokens)",
        error=float,
        limit=float,
        memory=str,
        tokens=int,
    ),
    "tokens-same": _kind("the same on all of {count} texts", count=int),
    "tokens-differ": _kind(
        "the same on {same} of {count} texts; others: {kinds:and}", same=int, count=int, kinds=list[str]
    ),
    "ops-right": _kind("{right} of {count} ops have their bits and block", right=int, count=int),
    "ops-wrong": _kind(
        "{right} of {count} ops have their bits and block; wrong: {wrong}, unknown: {unknown}",
        right=int,
        count=int,
        wrong=list[str],
        unknown=list[str],
    ),
    "bytes-of-budget": _kind(
        "{total_bytes:,} bytes of {budget_bytes:,} ({budget})", total_bytes=int, budget_bytes=int, budget=str
    ),
    "bytes-of-predicted": _kind(
        "{actual_bytes:,} of {predicted_bytes:,} predicted", actual_bytes=int, predicted_bytes=int
    ),
    "losses-apart": _kind(
        "{torch_nats:.3e} and {engine_nats:.3e} nats per token, {difference:.1%} apart, limit {limit:.0%}",
        torch_nats=float,
        engine_nats=float,
        difference=float,
        limit=float,
    ),
    "plan-like-uniform": _kind(
        "{plan_nats:.3e} against {uniform_nats:.3e} nats per token, no more than their difference's error of "
        "{stderr:.1e} explains, {plan_bytes:,} against {uniform_bytes:,} bytes",
        plan_nats=float,
        uniform_nats=float,
        stderr=float,
        plan_bytes=int,
        uniform_bytes=int,
    ),
    "plan-against-uniform": _kind(
        "{plan_nats:.3e} against {uniform_nats:.3e} nats per token, {plan_bytes:,} against {uniform_bytes:,} bytes",
        plan_nats=float,
        uniform_nats=float,
        plan_bytes=int,
        uniform_bytes=int,
    ),
    "ram-against-uniform": _kind(
        "{plan_bytes:,} against {uniform_bytes:,} bytes, limit {limit:.2f} times",
        plan_bytes=int,
        uniform_bytes=int,
        limit=float,
    ),
    "time-against-uniform": _kind(
        "{times:.3f} times as long ({low:.3f} to {high:.3f} over {rounds} rounds by turns), limit {limit:.2f}",
        times=float,
        low=float,
        high=float,
        rounds=int,
        limit=float,
    ),
    "no-difference-in-time": _kind(
        "no difference: {times:.3f} times as long, {low:.3f} to {high:.3f} over {rounds} rounds by turns",
        times=float,
        low=float,
        high=float,
        rounds=int,
    ),
    "same-timed-formats": _kind("no difference: the engine computes both with the same formats"),
    "nothing-found": _kind("nothing found"),
    "findings": _kind("{findings:apart}", findings=list[str]),
    "engine-outcome": _kind("{outcome}", outcome=str),
    "arm-legal": _kind("all are right there"),
    "arm-illegal": _kind(
        "{formats:and} are not right there: {tensors:more {others}}", formats=list[str], tensors=list[str], others=int
    ),
    "arm-lost": _kind(
        "at most {nats:.3g} nats, here {here_nats:.3g} (precision {precision}, {path}, {tokens} tokens), limit "
        "{limit_nats:.3g}",
        nats=float,
        here_nats=float,
        limit_nats=float,
        precision=str,
        path=str,
        tokens=int,
    ),
    # of a verification: what is missing
    "arm-not-proved": _kind(
        "the plan is for {target} and was not proved on ARM: give emit --prove arm, which runs the built model "
        "on MNN's ARM engine under emulation",
        target=str,
    ),
    "arm-not-proved-without-engine": _kind(
        "the plan is for {target} and was not proved on ARM: 'qplan engines add arm' fetches what emulates it, then "
        "give emit --prove arm",
        target=str,
    ),
}
