"""What a KV cache takes, against files that MNN's engine made of it, and what it may be."""

from __future__ import annotations

import pytest

from qplan.cost.kv_cache import KvMode, KvShape, kv_target
from qplan.cost.target import target_names
from qplan.errors import InputError

SMOLLM2 = KvShape(layers=30, heads=3, head_dim=64)
QWEN2_8M = KvShape(layers=8, heads=2, head_dim=64)


@pytest.mark.parametrize(
    ("target", "precision", "shape", "tokens", "files"),
    [
        ("cpu-x86", "low", SMOLLM2, 200, {"float": 13_455_360, "k8": 9_083_520, "kv8": 3_784_320, "tq4": 1_710_720}),
        ("cpu-x86", "low", SMOLLM2, 200, {"ktq4": 8_228_160}),
        ("arm-dot", "low", QWEN2_8M, 48, {"float": 491_520, "k8": 391_168, "kv8": 276_480}),
        ("arm-dot", "high", QWEN2_8M, 48, {"float": 983_040, "k8": 653_312, "kv8": 276_480, "tq4": 129_024}),
        ("arm-dot", "high", QWEN2_8M, 48, {"tq3": 100_352}),
        ("arm-i8mm", "low", QWEN2_8M, 48, {"float": 491_520, "k8": 391_168, "kv8": 276_480}),
        ("arm-sme2", "low", QWEN2_8M, 32, {"float": 524_288, "k8": 372_736, "kv8": 258_048}),
    ],
)
def test_bytes_are_those_of_the_engines_files(
    target: str, precision: str, shape: KvShape, tokens: int, files: dict[str, int]
) -> None:
    known = kv_target(target, precision)
    assert {mode: known.bytes(KvMode(mode), shape, tokens).stored for mode in files} == files


def test_sums_of_int8_come_on_top() -> None:
    found = kv_target("cpu-x86", "low").bytes(KvMode.KV8, SMOLLM2, 200)
    keys, largest, values = 4 * 264, 4 * 64, 5 * 4 * 64
    assert found.sums == 90 * (keys + largest + values) == found.total - found.stored
    assert kv_target("cpu-x86", "low").bytes(KvMode.TQ3, SMOLLM2, 200).sums == 0


@pytest.mark.parametrize("target", ["cpu-x86", "arm-v8", "arm-dot", "arm-i8mm", "arm-sme2", "phone"])
@pytest.mark.parametrize("mode", list(KvMode))
def test_more_tokens_never_take_less_and_narrower_modes_never_more(target: str, mode: KvMode) -> None:
    known = kv_target(target, "low")
    sizes = [known.bytes(mode, SMOLLM2, tokens).total for tokens in range(1, 400, 7)]
    assert sizes == sorted(sizes)
    assert all(size <= known.bytes(KvMode.FLOAT, SMOLLM2, 400).total for size in sizes)


def test_a_phone_takes_what_its_worst_processor_takes() -> None:
    phone = kv_target("phone", "low").bytes(KvMode.FLOAT, SMOLLM2, 2048)
    others = [kv_target(name, "low").bytes(KvMode.FLOAT, SMOLLM2, 2048) for name in ("arm-v8", "arm-dot", "arm-i8mm")]
    assert phone.total == max(found.total for found in others)
    assert set(kv_target("phone", "low").modes) <= set(kv_target("arm-dot", "low").modes)


def test_modes_that_are_wrong_are_refused_with_the_reason() -> None:
    x86 = kv_target("cpu-x86", "low")
    assert x86.legal(KvMode.TQ4, SMOLLM2)
    assert "no multiple of 32" in str(x86.defect(KvMode.TQ4, KvShape(2, 2, 80), "cpu-x86"))
    assert "right with float, k8, kv8" in str(kv_target("arm-dot", "low").defect(KvMode.TQ4, SMOLLM2, "arm-dot"))
    assert x86.defect(KvMode.KV8, KvShape(2, 2, 80), "cpu-x86") is None
    with pytest.raises(InputError, match="layout of the KV cache on gpu"):
        kv_target("gpu", "low")


def test_every_name_is_a_target() -> None:
    for name in ("cpu-x86", "arm-v8", "arm-dot", "arm-i8mm", "arm-sme2", "phone"):
        assert name in target_names()
        assert KvMode.FLOAT in kv_target(name, "low").modes


def test_modes_are_mnns_numbers() -> None:
    numbers = {mode.value: mode.attention_mode for mode in KvMode}
    assert numbers == {"float": 8, "k8": 9, "kv8": 10, "ktq3": 11, "tq3": 12, "ktq4": 13, "tq4": 14}
