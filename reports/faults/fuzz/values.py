"""Values at the edges: numbers, texts, sizes, lists, paths, JSON."""

from __future__ import annotations

import math
import sys

from hypothesis import strategies as st

LONG_NUMBER = "9" * 5000
"""More digits than Python reads."""

NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 7, 64, 255, 1 << 31, -(1 << 31), 1 << 32, 1 << 63, -(1 << 63), 1 << 64, 10**30, 10**400]
) | st.integers(-9, 300)
"""Integers that types and sizes end at, and small ones."""

FLOATS = st.sampled_from(
    [0.0, -0.0, 1.0, 0.5, -1.0, 1e-320, 1e-9, 1e9, 1e300, -1e300, sys.float_info.max, math.inf, -math.inf, math.nan]
)

_ODD_TEXTS = (
    *("", " ", "-", "--", "x", ".", "..", "/", "~", "nan", "inf", "null", "true", "0x10", "1_000", "١٢", "²", "½"),
    *("[bold red]x[/]", "[/]", "[link=file:///]", "\x1b[31m", "\a", "\t", "\n", "a\rb", "\u202e", "\ufeff", "é", "é"),
    *("中文", "🏳️‍🌈", "\ud7ff", "\U0010ffff", "%s", "{0}", "{layer}", "$(true)", "';--", "<script>", "|", "`", "*", "**"),
    *("x" * 300, "中" * 100, "a/b/c", "../x", "text.txt", "hf", "golden", "small", "/dev/null", "/dev/zero", "int8"),
)

TEXTS = st.sampled_from(_ODD_TEXTS) | st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12
)
"""Texts that mean something to a terminal, a shell, Markdown, HTML or a file system, and any others."""

JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | FLOATS | TEXTS | st.sampled_from(["\ud800", "a\0b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
"""Any JSON value, and those that only Python writes: NaN, infinities, lone surrogates."""

_AMOUNTS = st.sampled_from(
    ["0", "1", "-1", "0.5", "1e3", "1e400", "-0", "nan", "inf", "1,000", "1 000", "٣", "", LONG_NUMBER, "1e", ".", "300"]
)
SIZES = st.builds(
    lambda amount, unit: amount + unit,
    _AMOUNTS,
    st.sampled_from(["", "B", "kB", "MB", "GB", "MiB", "TB", "YB", "bpw", "%", " MB", "mb", "parsecs", "ms", "pct"]),
)

FORMATS = st.sampled_from(
    ["fp16", "int8", "int4", "int4-b32", "int8-b0", "int2", "int1", "int9", "int16", "fp32", "int4-b-1", "int4-b999999999"]
    + ["int4-s32", "int4-sym", "int4-b7", "INT8", "int", "int04", "int4-b", "int8,int8", "", ",", "fp16,", " int4 "]
)

PATTERNS = st.sampled_from(
    ["*", "**", "", "*.q_proj", "[", "[]", "[!", "lm_head", "model.layers.0.*", "0.mlp.down_proj", "*.{layer}.*", "{", "}"]
    + ["{layer}", "{expert}", "{kind}", "{x}", "\\", "?", "model.layers.[0-9].*", "x" * 5000, "*" * 60 + "b"]
)

WHOLE = NUMBERS.map(lambda number: str(number) if abs(number) < 10**300 else LONG_NUMBER) | TEXTS
"""Words for options that take an integer."""

REAL = st.one_of(FLOATS.map(str), _AMOUNTS, WHOLE)
"""Words for options that take a number."""

PATHS = st.sampled_from(
    ["hf", "golden", "small", "mnn", "text.txt", "short.txt", "absent", ".", "/", "", "..", "a/b/c/d", "/dev/null", "fifo"]
    + ["/dev/zero", "/proc/self/mem", "loop", "golden/int8", "golden/int8/plan.json", "small/skeleton", "hf/config.json"]
    + ["golden/sensitivity.parquet", "x" * 300, "new[1]/x", "text.txt/x", "~", "http://localhost:1/x", "file:///etc"]
    + ["\udcff\udcfe", "-", "a b", "tensors'\"", "int8", "mnn/config.json", "org/name", "a/b@main", "new"]
) | TEXTS.filter(lambda text: not text.startswith("/"))
"""Files, folders, hub ids and what is none of them. Links and FIFOs of these names lie in a case's folder."""
