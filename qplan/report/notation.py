"""How numbers are written: one notation for pages, tables, figures and tooltips."""

from __future__ import annotations

import math

MISSING = "\N{EN DASH}"
"""Stands for a number that was not measured."""

TIMES = "\N{MULTIPLICATION SIGN}"

_PREFIXES = ("B", "kB", "MB", "GB", "TB")


def significant(value: float, digits: int = 3) -> str:
    """A number with ``digits`` significant digits, grouped by thousands, never in scientific notation."""
    if not math.isfinite(value):
        return "∞" if value > 0 else MISSING
    if value == 0:
        return "0"
    # the exponent after rounding: 0.9996 is 1.00, not 1.000
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    decimals = digits - 1 - exponent
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def threads(count: int) -> str:
    """So many threads: ``1 thread``, ``2 threads``."""
    return f"{count} thread" + ("s" if count > 1 else "")


def size(count: float | None) -> str:
    """Bytes in SI units: ``4.21 MB`` is about 4,210,000 bytes."""
    if count is None:
        return MISSING
    scaled, prefix = float(count), 0
    while scaled >= 999.5 and prefix < len(_PREFIXES) - 1:
        scaled, prefix = scaled / 1000, prefix + 1
    return f"{significant(scaled)} {_PREFIXES[prefix]}"


def round_size(count: float) -> str:
    """Bytes as an axis writes them: ``2 MB``, ``1.5 MB``, without trailing zeros."""
    number, _, unit = size(count).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def loss(nats: float | None) -> str:
    """A loss with two significant digits: ``5.1e-4``, ``0``, ``1.3``; the unit goes into the caption."""
    if nats is None or math.isnan(nats):
        return MISSING
    if nats == 0 or not math.isfinite(nats) or abs(nats) >= 0.995:
        return significant(nats, 2)
    mantissa, exponent = f"{nats:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def tick(nats: float) -> str:
    """A loss as an axis writes it: ``1e-4``, ``2e-4``."""
    return loss(nats).replace(".0e", "e")


def ratio(value: float | None) -> str:
    """A quotient with a multiplication sign and two decimals, or two digits: no more is known of losses and times."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) < 0.01:
        return f"{loss(value)}{TIMES}"
    if abs(value) >= 9.995:
        return f"{significant(value, 2)}{TIMES}"
    return f"{value:.2f}{TIMES}"


def percent(fraction: float | None) -> str:
    """A share: ``98.7 %``; two decimals near one, where they matter."""
    if fraction is None or math.isnan(fraction):
        return MISSING
    decimals = 2 if 0.995 <= fraction < 1 else 1
    return f"{100 * fraction:.{decimals}f} %"


def perplexity(value: float | None) -> str:
    """A perplexity with four significant digits."""
    return MISSING if value is None else significant(value, 4)


def speed(tokens_per_s: float | None) -> str:
    """Tokens per second with three significant digits."""
    return MISSING if tokens_per_s is None else significant(tokens_per_s, 3)


def decibel(value: float | None) -> str:
    """A signal to noise ratio with one decimal; ``∞`` where nothing changed."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:.1f}" if math.isfinite(value) else "∞"


def sortable(value: float | None) -> float:
    """A finite number that sorts like ``value``; missing values come last in descending order."""
    if value is None or math.isnan(value):
        return -1e99
    return max(-1e9, min(1e9, value))


def place(source: str) -> str:
    """Where a model or a text comes from: a hub id as it is, a path on this machine by its last two parts."""
    parts = source.replace("\\", "/").rstrip("/").split("/")
    local = source.startswith(("/", "~", "..")) or source[1:3] == ":\\"
    return f"…/{'/'.join(parts[-2:])}" if local and len(parts) > 2 else source


def digits(value: float) -> str:
    """A number for machines, short and sorted like the number itself."""
    return f"{value:.5g}"


def quotient(value: float | None, base: float | None) -> float | None:
    """``value / base``, None where either is missing or the base is zero."""
    return None if value is None or not base else value / base


def number(value: float) -> str:
    """A number in a table of mixed numbers: three significant digits, small ones written like losses."""
    return loss(value) if abs(value) < 0.01 else significant(value)


def model_name(source: str) -> str:
    """The last part of a model's folder or hub id."""
    return source.rstrip("/").rpartition("/")[2]
