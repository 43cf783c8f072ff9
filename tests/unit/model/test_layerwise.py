"""Layer by layer, forwards and backwards: the same numbers as one pass through the whole model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qplan.model.backward import sampled_backward
from qplan.model.layerwise import LayerTrace, WayBack, WayThere
from qplan.model.load import LoadedModel
from qplan.run.calibration import CalibrationSet

SEEDS = (11, 12)


class _Recorder:
    """Keeps what an observer of a whole pass sees, by batch."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Linear, list[Tensor]] = {}
        self.gradients: dict[nn.Linear, list[Tensor]] = {}
        self.lookups: list[Tensor] = []

    def forward(self, module: nn.Linear, inputs: Tensor, outputs: Tensor) -> None:
        assert outputs.shape[:-1] == inputs.shape[:-1]
        self.inputs.setdefault(module, []).append(inputs)

    def backward(self, module: nn.Linear, inputs: Tensor, gradients: Tensor, lookups: Tensor | None) -> None:
        assert inputs.shape[:-1] == gradients.shape[:-1]
        self.gradients.setdefault(module, []).append(gradients)
        if lookups is not None:
            self.lookups.append(lookups)


def _ways(loaded: LoadedModel, batches: list[Tensor]) -> tuple[WayBack, list[LayerTrace]]:
    there = WayThere(loaded, batches, kept=len(batches))
    for index in range(len(loaded.layers)):
        for number in range(len(batches)):
            there.run(index, number)
    back = WayBack(loaded, batches, there.between, SEEDS)
    return back, list(back.traces())


def test_there_and_back_is_a_pass_through_the_whole_model(tiny: LoadedModel, calibration: CalibrationSet) -> None:
    batches = list(torch.from_numpy(calibration.tokens).split(3))
    whole = _Recorder()
    nll = [sampled_backward(tiny, batch, [seed], whole) for batch, seed in zip(batches, SEEDS, strict=True)]
    back, traces = _ways(tiny, batches)
    assert [trace.index for trace in traces] == list(range(len(tiny.layers), -1, -1))
    seen: set[nn.Linear] = set()
    for trace in traces:
        for module, inputs in trace.inputs.items():
            seen.add(module)
            for number in range(len(batches)):
                torch.testing.assert_close(inputs[number], whole.inputs[module][number], rtol=1e-4, atol=1e-6)
                ours, theirs = trace.gradients[module][number], whole.gradients[module][number]
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6 + 1e-4 * float(theirs.abs().max()))
                energy = trace.energies[module][number]
                torch.testing.assert_close(energy, ours.flatten(0, -2).square().sum(0))
    assert seen == set(whole.inputs)
    for ours, theirs in zip(back.nll, nll, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(back.lookups) == len(whole.lookups)
    for mine, expected in zip(back.lookups, whole.lookups, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-6 + 1e-4 * float(expected.abs().max()))


def test_some_outputs_of_a_linear_can_be_kept_alone(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    batches = list(torch.from_numpy(calibration.tokens).split(3))
    _, traces = _ways(qwen2, batches)
    there = WayThere(qwen2, batches, kept=2)
    for index in range(len(qwen2.layers)):
        for number in range(2):
            there.run(index, number)
    rows = torch.tensor([1, 5, 6])
    some = WayBack(qwen2, batches, there.between, SEEDS, drawn={qwen2.head: rows})
    head = next(some.traces())
    for number in range(2):
        all_of_them = traces[0].gradients[qwen2.head][number]
        torch.testing.assert_close(head.gradients[qwen2.head][number], all_of_them[..., rows])
        torch.testing.assert_close(head.slopes[qwen2.head][number], all_of_them @ qwen2.head.weight)


def test_half_products_change_gradients_by_their_last_digits(tiny: LoadedModel, calibration: CalibrationSet) -> None:
    batches = list(torch.from_numpy(calibration.tokens).split(3))
    found = {}
    for half in (False, True):
        there = WayThere(tiny, batches, kept=len(batches))
        for index in range(len(tiny.layers)):
            for number in range(len(batches)):
                there.run(index, number)
        way = WayBack(tiny, batches, there.between, SEEDS, drawn={tiny.head: torch.tensor([3, 5])}, half=half)
        found[half] = list(way.traces())
    errors = []
    for exact, other in zip(found[False], found[True], strict=True):
        for module in exact.inputs:
            pairs = zip(exact.inputs[module], other.inputs[module], strict=True)
            assert all(torch.equal(one, two) for one, two in pairs)
            gradients = [torch.cat([part.flatten() for part in trace.gradients[module]]) for trace in (exact, other)]
            errors.append(float((gradients[0] - gradients[1]).norm() / gradients[0].norm()))
    assert max(errors) < 0.02
    assert max(errors) > 1e-4  # other products, indeed
    assert not any("forward" in vars(module) for module in tiny.model.modules())
