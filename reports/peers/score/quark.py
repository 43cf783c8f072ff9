"""AMD Quark's experimental ``MixedPrecisionPlanner``: its scores and solver, choosing from 4 and 8 bits, groups of 64.

It scores every linear by the relative squared error of its weights, for which it takes no tokens, and finds the
assignment of the smallest sum within mean bits by a 0/1 program (CBC). As it comes, it offers 16-bit floats and FP8,
for Llama and Qwen3 alone; its lists of formats and architectures are replaced here, and 16 bits are priced out of every
budget. Variant ``perplexity`` goes on as its example does, with the settings of that, on the tokens of all peers: of
five assignments it takes the smallest whose perplexity passes a gate, the better one of equally small ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quark.experimental.torch.mixed_precision_planner import (
    Candidates,
    DecisionSpace,
    MixedPrecisionPlanner,
    MixedPrecisionStrategy,
    SensitivityProfile,
    TokenDataset,
    hardware_capability,
    plan_selection,
)
from quark.experimental.torch.mixed_precision_planner.candidates import Candidate
from quark.experimental.torch.mixed_precision_planner.cost_accounting import WeightStorageCost
from quark.experimental.torch.mixed_precision_planner.data import TokenPurpose
from quark.experimental.torch.mixed_precision_planner.errors import NoCandidatePassedError, SearchError
from quark.experimental.torch.mixed_precision_planner.sensitivity_profile import SensitivityRecord
from quark.torch import LLMTemplate
from quark.torch.quantization.config.config import QLayerConfig, Uint4PerGroupSpec, Uint8PerGroupSpec

from reports.peers.score.hugging_face import Subject
from reports.peers.score.job import Answer, Job, mean_bits, parse, versions
from reports.peers.score.meter import spent_on

NATIVE = "native"
WIDTHS = {"uint4_group_64": 4, "uint8_group_64": 8}
"""Asymmetric integers: bits by the name that the format is registered under."""
SCALE_BITS = 0.25
"""A scale of 16 bits for every 64 weights, which its effective bits count; zero points they do not."""


def offer_widths(model_type: str) -> None:
    """Let it plan an architecture, and in 4 and 8 bits."""
    for name, spec in zip(WIDTHS, (Uint4PerGroupSpec, Uint8PerGroupSpec), strict=True):
        weight = spec(ch_axis=-1, group_size=64, symmetric=False).to_quantization_spec()
        LLMTemplate.register_scheme(name, QLayerConfig(weight=weight))
    hardware_capability._MI355_SCHEMES = (NATIVE, *WIDTHS)  # noqa: SLF001
    hardware_capability._SUPPORTED_DENSE_MODEL_TYPES = (model_type,)  # noqa: SLF001


def strategy_of(bits: float, candidates: int) -> MixedPrecisionStrategy:
    """Its example's strategy with another budget."""
    return MixedPrecisionStrategy.from_dict(
        {
            "schema_version": 1,
            "hardware": {"target": "mi355"},
            "deployment_backend": {"name": "no_fusion"},
            "decision_space": {"exclude_patterns": []},
            "sensitivity_profile": {"methods": ["weight_mse"]},
            "calibration": {"dataset": "pileval", "num_samples": 16, "max_length": 512, "batch_size": 1},
            "search": {
                "granularity": "fine",
                "algorithm": "linear_programming",
                "budget": {"metric": "effective_bits", "value": bits + SCALE_BITS, "scope": "quantizable"},
                "num_candidates": candidates,
                "diversity": {"high_impact_fraction": 0.3, "min_high_impact_differences": 1},
            },
            "plan_selection": {
                "evaluator": {"backend": "hf", "protocol": "token_ppl_v1"},
                "quality_gate": {
                    "metric": "ppl",
                    "dataset": "wikitext2",
                    "max_degradation": 0.02,
                    "num_chunks": 1,
                    "max_length": 2048,
                },
                "selection_policy": "lowest_effective_bits",
            },
            "output": {"dir": "nothing is written"},
            "seed": 42,
        }
    )


def half(job: Job) -> Any:  # noqa: ANN401 - a Hugging Face model
    """The model in FP16: it takes 16-bit floats alone."""
    return Subject.load(job).model.half()


def without_native(
    profile: SensitivityProfile, space: DecisionSpace, strategy: MixedPrecisionStrategy
) -> SensitivityProfile:
    """The same scores, with 16 bits of any one tensor beyond the bytes of the whole model in 16 bits."""
    total = space.payload.total_quantizable_params
    smallest = min(record.cost.num_params for record in profile.payload.records)
    bits = 16 * -(-total // smallest)

    def priced(record: SensitivityRecord) -> SensitivityRecord:
        if record.scheme != NATIVE:
            return record
        weights = record.cost.num_params
        return replace(record, cost=WeightStorageCost(bits * weights, 0, bits * weights, weights, float(bits)))

    payload = replace(profile.payload, records=tuple(priced(record) for record in profile.payload.records))
    return SensitivityProfile.create(payload, decision_space=space, strategy=strategy)


def widths(candidate: Candidate) -> dict[str, int]:
    """Bits by tensor; the head, which it does not plan, is left out."""
    return {entry.module_name: WIDTHS[entry.scheme] for entry in candidate.assignment if entry.scheme in WIDTHS}


@dataclass(frozen=True)
class Planning:
    """Its stages on one model."""

    job: Job
    gated: bool
    """Whether perplexity chooses from its best five."""
    space: DecisionSpace
    profile: SensitivityProfile

    @classmethod
    def score(cls, model: Any, job: Job, *, gated: bool) -> Planning:  # noqa: ANN401 - a Hugging Face model
        """Score every linear of a model in FP16; scores do not depend on the budget."""
        strategy = strategy_of(job.budgets[0], 1)
        planner = MixedPrecisionPlanner(strategy)
        space = planner.decision_space(model)
        profile = without_native(planner.sensitivity_profile(model, space), space, strategy)
        return cls(job, gated, space, profile)

    def plan(self, bits: float) -> dict[str, int] | None:
        """Widths by tensor; None if its solver fails, or nothing passes the gate."""
        planner = MixedPrecisionPlanner(strategy_of(bits, 5 if self.gated else 1))
        try:
            candidates = planner.search(self.space, self.profile)
            return widths(self.selected(planner, candidates) if self.gated else candidates.payload.candidates[0])
        except (SearchError, NoCandidatePassedError) as error:
            print(f"{bits} bits: {error}")
            return None

    def selected(self, planner: MixedPrecisionPlanner, candidates: Candidates) -> Candidate:
        """The candidate that it would export."""
        about = {
            "dataset": "the tokens of all peers",
            "split": "all",
            "revision": None,
            "tokenizer_id": self.job.model,
            "tokenizer_fingerprint": "sha256:",
            "sequences": tuple(tuple(row) for row in self.job.ids.tolist()),
        }
        # quantizing weights alone calibrates nothing; it wants tokens all the same
        calibration = TokenDataset.create(purpose=TokenPurpose.CALIBRATION, sampling_seed=42, **about)
        judged = TokenDataset.create(purpose=TokenPurpose.PPL, **about)
        plan = planner.select_best_plan(
            lambda: half(self.job), self.space, candidates, calibration, judged, device="cpu"
        )
        return plan.payload.selected_candidate


def main() -> None:
    """Answer one job.

    Raises:
        ValueError: no budget has a plan.
    """
    job, path = parse()
    # the same tokens as all peers; it checks that they are of the Pile and of WikiText-2
    plan_selection.validate_token_datasets = lambda *_args, **_kwargs: None
    subject = Subject.load(job)
    weights, forward_s = subject.linears, subject.forward_s()
    offer_widths(subject.model.config.model_type)
    model = subject.model.half()

    def begin() -> tuple[Planning, dict[str, int] | None]:
        planning = Planning.score(model, job, gated=job.variant == "perplexity")
        return planning, planning.plan(job.budgets[0])

    (planning, first), spent = spent_on(begin)
    found = {job.budgets[0]: first} | {budget: planning.plan(budget) for budget in job.budgets[1:]}
    plans = {str(budget): plan for budget, plan in found.items() if plan is not None}
    if not plans:
        msg = "no budget has a plan"
        raise ValueError(msg)
    for name, plan in plans.items():
        print(f"{name} bits: {mean_bits(plan, weights):.3f}")
    method = "MixedPrecisionPlanner, Weight-MSE" + (", five candidates and a gate" if planning.gated else "")
    if missing := [f"{budget:g}" for budget in found if str(budget) not in plans]:
        method += f"; no plan for {', '.join(missing)} bits"
    Answer(versions("amd-quark", "torch", "transformers"), method, forward_s, spent, plans).write(path)


if __name__ == "__main__":
    main()
