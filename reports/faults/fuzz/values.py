"""Values at the edges: numbers, texts, sizes, lists, paths, JSON."""

from __future__ import annotations

import math
import sys

from hypothesis import strategies as st

LONG_NUMBER = "9" * 5000
"""More digits than Python reads."""

_EDGES = (0, 1, -1, 2, 3, 7, 64, 255, 1 << 31, -(1 << 31), 1 << 32, 1 << 63, -(1 << 63), 1 << 64, 10**30, 10**400)

NUMBERS = st.sampled_from(_EDGES) | st.integers(-9, 300)
"""Integers that types and sizes end at, and small ones."""

FLOATS = st.sampled_from(
    [0.0, -0.0, 1.0, 0.5, -1.0, 1e-320, 1e-9, 1e9, 1e300, -1e300, sys.float_info.max, math.inf, -math.inf, math.nan]
)

_ODD_TEXTS = (
    *("", " ", "-", "--", "x", ".", "~", "nan", "inf", "null", "true", "0x10", "1_000", "\u0661\u0662", "\xb2", "\xbd"),
    *("[bold red]x[/]", "[/]", "[link=file:///]", "\x1b[31m", "\a", "\t", "\n", "a\rb", "\u202e", "\ufeff", "e\u0301"),
    *(
        "中文",
        "🏳️\u200d🌈",
        "\ud7ff",
        "\U0010ffff",
        "%s",
        "{0}",
        "{layer}",
        "$(true)",
        "';--",
        "<script>",
        "|",
        "`",
        "*",
    ),
    *("x" * 300, "中" * 100, "a/b/c", "x/../y", "text.txt", "hf", "golden", "small", "/dev/null", "/dev/zero", "int8"),
)

# nothing that leads out of a case's folder: commands write where they are told to
TEXTS = st.sampled_from(_ODD_TEXTS) | st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/"), max_size=12
).filter(lambda text: text != "..")
"""Texts that mean something to a terminal, a shell, Markdown, HTML or a file system, and any others."""

JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | FLOATS | TEXTS | st.sampled_from(["\ud800", "a\0b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
"""Any JSON value, and those that only Python writes: NaN, infinities, lone surrogates."""

_AMOUNTS = st.sampled_from(
    [
        *["0", "1", "-1", "0.5", "1e3", "1e400", "-0", "nan", "inf", "1,000", "1e", ".", "300", "5", "900"],
        "",
        "1 000",
        "\u0663",
        LONG_NUMBER,
    ]
)
SIZES = st.builds(
    lambda amount, unit: amount + unit,
    _AMOUNTS,
    st.sampled_from(["", " MB", *["B", "kB", "MB", "GB", "MiB", "TB", "YB", "bpw", "%", "mb", "parsecs", "ms", "pct"]]),
)

FORMATS = st.sampled_from(
    [
        *[
            "fp16",
            "int8",
            "int4",
            "int4-b32",
            "int8-b0",
            "int2",
            "int1",
            "int9",
            "int16",
            "fp32",
            "int4-b-1",
            "int4-b999999999",
            "int4-s32",
            "int4-sym",
        ],
        *["int4-b7", "INT8", "int", "int04", "int4-b", "int8,int8", ",", "fp16,"],
        *("", " int4 "),
    ]
)

PATTERNS = st.sampled_from(
    [
        *[
            "*",
            "**",
            "*.q_proj",
            "[",
            "[]",
            "[!",
            "lm_head",
            "model.layers.0.*",
            "0.mlp.down_proj",
            "*.{layer}.*",
            "{",
            "}",
            "{layer}",
            "{expert}",
        ],
        *["{kind}", "{x}", "\\", "?", "model.layers.[0-9].*"],
        *("", "x" * 5000, "*" * 60 + "b"),
    ]
)

WHOLE = NUMBERS.map(lambda number: str(number) if abs(number) < 10**300 else LONG_NUMBER) | TEXTS
"""Words for options that take an integer."""

REAL = st.one_of(FLOATS.map(str), _AMOUNTS, WHOLE)
"""Words for options that take a number."""

_PATHS = (
    *[
        "hf",
        "golden",
        "small",
        "mnn",
        "text.txt",
        "short.txt",
        "absent",
        ".",
        "a/b/c/d",
        "/dev/null",
        "/dev/zero",
        "fifo",
        "loop",
        "golden/int8",
    ],
    *[
        "golden/int8/plan.json",
        "small/skeleton",
        "hf/config.json",
        "golden/sensitivity.parquet",
        "new[1]/x",
        "text.txt/x",
        "~",
    ],
    *[
        "http://localhost:1/x",
        "file:///etc",
        "tensors'\"",
        "int8",
        "mnn/config.json",
        "org/name",
        "a/b@main",
        "new",
        "-",
        "/proc/self/mem",
    ],
    *("", "x" * 300, "\udcff\udcfe", "a b"),
)

PATHS = st.sampled_from(_PATHS) | TEXTS
"""Files, folders, hub ids and what is none of them. A link and a FIFO of these names lie in a case's folder."""
