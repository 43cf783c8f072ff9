"""What targets allow and cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.cost.file_bytes import FixedBytes
from qplan.cost.target import Target, find_target, target_names, targets
from qplan.errors import InputError
from qplan.formats import FP16, INT4, INT8, INT_BITS, QuantFormat
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.profile import DeviceProfile, OpTime, TimedModel
from qplan.settings import PRECISIONS
from qplan.tensors import Role, TensorSpec
from tests.support.invented_table import make_table

SPEC = TensorSpec("x.q_proj", "/x", 0, "q_proj", Role.ATTENTION, 1000, 1024, bias=False)
BLOCKS = (0, 4, 16, 32, 64)
HEAD = TensorSpec("lm_head", "/lm", None, "lm_head", Role.HEAD, 1000, 1024, bias=False, tied=True)


def test_every_target_says_where_it_is_from_and_whether_it_was_run() -> None:
    arm = ["arm-dot", "arm-i8mm", "arm-sme2", "arm-v8"]
    assert [name for name, target in targets().items() if target.measured] == [*arm, "cpu-x86", "phone"]
    assert target_names() == tuple(targets())
    for target in targets().values():
        assert target.source
        assert target.speeds
        integers = set(target.widths) - {16}
        assert set(target.ram_bits) == set(target.ram_block_bytes) == integers
        assert set(target.decode) == set(target.prefill) == set(target.widths)
        assert set(target.runs_like.values()) <= set(target.widths)
        assert set(target.arithmetics) == set(target.float_bits) == set(PRECISIONS)
        assert not set(target.why_not) & set(map(str, target.widths))
    with pytest.raises(InputError, match=r"'toaster' is unknown; use one of arm-dot, .*, gpu \(not measured\)"):
        find_target("toaster")
    assert find_target("cpu-arm") is find_target("phone")


def test_a_phone_is_what_all_arm_processors_have_in_common() -> None:
    phone, arm = find_target("phone"), [find_target(f"arm-{name}") for name in ("v8", "dot", "i8mm", "sme2")]
    formats = [
        QuantFormat(bits, block, symmetric) for bits in INT_BITS for block in BLOCKS for symmetric in (False, True)
    ]
    for fmt in (FP16, *formats):
        assert phone.legal(SPEC, fmt) == all(target.legal(SPEC, fmt) for target in arm), fmt
        if phone.legal(SPEC, fmt):
            for precision in PRECISIONS:
                most = max(target.at(precision).ram_bytes(SPEC, fmt) for target in arm)
                assert phone.at(precision).ram_bytes(SPEC, fmt) == most


def test_a_target_says_why_a_format_is_not_right_there() -> None:
    sme2, dot = find_target("arm-sme2"), find_target("arm-dot")
    assert sme2.defect(SPEC, INT4) is None
    assert sme2.defect(SPEC, QuantFormat(2)) == (
        "arm-sme2 has no int2: 2 and 3 bits are garbage on its SME2 kernels (emulated); use 4 bits, or another target"
    )
    assert "blocks of 16; use whole rows (int4-b0) or multiples of 16 from 32 on" in str(
        dot.defect(SPEC, QuantFormat(4, 16))
    )
    assert "use int4-sym" in str(find_target("npu-hexagon").defect(SPEC, INT4))


def test_low_bits_save_ram_and_decode_time_on_arm_and_fp16_costs_by_precision() -> None:
    dot, i8mm = find_target("arm-dot"), find_target("arm-i8mm")
    rows = 1000 * 8
    assert i8mm.ram_bytes(SPEC, QuantFormat(3, 0)) == SPEC.weights * 3 // 8 + rows
    assert dot.ram_bytes(SPEC, QuantFormat(2, 0)) == SPEC.weights // 4 + rows
    assert i8mm.decode_bytes(SPEC, QuantFormat(2, 0)) < i8mm.decode_bytes(SPEC, QuantFormat(3, 0))
    assert i8mm.decode_bytes(SPEC, INT8) == i8mm.ram_bytes(SPEC, INT8)
    assert dot.ram_bytes(SPEC, FP16) == 2 * SPEC.weights
    assert dot.at("high").ram_bytes(SPEC, FP16) == 4 * SPEC.weights
    assert dot.at("high").prefill_work(SPEC, FP16) == 2 * dot.prefill_work(SPEC, FP16)
    assert (dot.arithmetic, dot.at("high").arithmetic) == ("arm-fp16", "arm")
    assert find_target("arm-v8").arithmetic == "arm"
    assert {find_target("cpu-x86").at(precision).arithmetic for precision in PRECISIONS} == {"x86"}
    assert dot.decode_bytes(SPEC, INT4, "normal") == dot.ram_bytes(SPEC, INT8, "normal")


def test_x86_saves_ram_and_time_with_4_and_8_bits_only() -> None:
    x86 = find_target("cpu-x86")
    codes = SPEC.weights
    blocks = 1000 * 16
    sizes = {bits: x86.ram_bytes(SPEC, QuantFormat(bits)) for bits in (2, 3, 4, 5, 6, 8)}
    assert {sizes[bits] for bits in (2, 3, 5, 6)} == {sizes[8]} == {codes + 8 * blocks}
    assert sizes[4] == codes // 2 + 8 * blocks
    assert x86.ram_bytes(SPEC, FP16) == 4 * codes == x86.ram_bytes(SPEC, INT4, "normal")
    assert x86.timed_as(QuantFormat(3, 32)) == QuantFormat(8, 32)
    assert x86.timed_as(INT4) == INT4
    assert [bits for bits in (2, 3, 4, 5, 6, 8) if x86.legal(HEAD, QuantFormat(bits))] == [4, 8]


def test_scales_of_activation_blocks_take_ram_and_time_unless_a_block_is_the_row() -> None:
    for name in ("cpu-x86", "arm-i8mm"):
        target = find_target(name)
        scaled = target.scaling(2)
        blocks = 1000 * 16
        assert scaled.ram_bytes(SPEC, INT4) == target.ram_bytes(SPEC, INT4) + 4 * blocks
        for costs in (Target.decode_bytes, Target.prefill_work):
            assert costs(scaled, SPEC, INT4) > costs(target, SPEC, INT4)
            assert costs(scaled, SPEC, QuantFormat(4, 0)) == costs(target, SPEC, QuantFormat(4, 0))
            assert costs(scaled, SPEC, FP16) == costs(target, SPEC, FP16)


def test_hexagon_takes_symmetric_4_bits_only() -> None:
    hexagon = find_target("npu-hexagon")
    assert hexagon.legal(SPEC, QuantFormat(4, symmetric=True))
    assert not hexagon.legal(SPEC, INT4)
    assert not hexagon.legal(SPEC, INT8)
    with pytest.raises(InputError, match="npu-hexagon has no int8"):
        hexagon.ram_bytes(SPEC, INT8)


def test_plans_keep_to_what_the_target_allows(fixed: FixedBytes) -> None:
    table = make_table(("int8", "int4", "int4-sym"))
    free = make_plan(table, Budget.parse("int4"), fixed, rules=Rules(logits_bits=0))
    assert INT8 in free.formats.values()
    plan = make_plan(table, Budget.parse("int4"), fixed, rules=Rules(logits_bits=0, target=find_target("npu-hexagon")))
    assert set(plan.formats.values()) == {QuantFormat(4, symmetric=True)}
    assert (plan.target, Rules.of(plan).target) == ("npu-hexagon", find_target("npu-hexagon"))


def test_a_profile_adds_times_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    card = make_table().model
    shapes = dict.fromkeys((s.out_features, s.in_features) for s in card.tensors)
    ops = [OpTime(*shape, name, 4, *times) for shape in shapes for name, times in TIMES.items()]
    profile = DeviceProfile(
        "a machine", "3.6.1", "cpu-x86", "low", 1, 128, card.sha256, "int8", 10.0, 2.0, tuple(ops), MODELS
    )
    path = tmp_path_factory.mktemp("device") / "device.json"
    profile.write(path)
    assert DeviceProfile.read(path) == profile
    mixed = {spec.name: (INT4, QuantFormat(6), FP16)[index % 3] for index, spec in enumerate(card.tensors)}
    counts = [sum(fmt == kind for fmt in mixed.values()) for kind in (INT4, FP16)]
    prefill, decode = profile.predict(card, mixed)
    assert prefill == pytest.approx(10 - counts[0] + counts[1] * 2)
    assert decode == pytest.approx(2 - 0.25 * counts[0] + counts[1])
    with pytest.raises(InputError, match="no int4-b32 of shape"):
        profile.decode_ms(card.tensors[0], QuantFormat(4, 32))
    with pytest.raises(InputError, match="the device profile is of memory low, not normal"):
        profile.check_model(card, "normal")
    with pytest.raises(InputError, match=f"of another model than {card.source}; run 'qplan profile'"):
        profile.check_model(replace(card, sha256="other"), "low")
    with pytest.raises(InputError, match="run 'qplan profile' first"):
        DeviceProfile.read(path.with_name("none.json"))


MODELS = (TimedModel("base", 10.0, 2.0),)
TIMES = {"int8": (0.0, 0.0), "int4": (-4.0, -1.0), "fp16": (8.0, 4.0)}


@pytest.fixture
def fixed() -> FixedBytes:
    return FixedBytes(8 * make_table().model.norm_weights, 0, 20_000, exact=True)


def test_whole_rows_may_take_longer_than_blocks_in_a_prefill_and_less_in_decoding() -> None:
    x86, rows = find_target("cpu-x86"), QuantFormat(8, 0)
    assert x86.prefill_work(SPEC, rows) == pytest.approx(1.18 * SPEC.weights)
    assert x86.prefill_work(SPEC, rows) > x86.prefill_work(SPEC, QuantFormat(8, 32)) > x86.prefill_work(SPEC, INT8)
    assert x86.decode_bytes(SPEC, rows) < x86.decode_bytes(SPEC, INT8)
    assert x86.prefill_work(SPEC, QuantFormat(4, 0)) < x86.prefill_work(SPEC, INT4)
