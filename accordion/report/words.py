"""Figures in words: how numbers, sizes, times and intervals are written in the report."""

from collections.abc import Sequence

from markupsafe import Markup

from accordion.report.summary import Interval


def count(value: float) -> str:
    """12345678 as `12.3 M`."""
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `0.4 s`, `38 s`, `3.2 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min"


def number(value: object) -> str:
    """A figure for a table: integers in full, others to four digits that count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1):
        return f"{int(value):,}"
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e6 or value == 0 else power(value)


def power(value: float) -> str:
    """A very small or large figure as `3.1×10⁻⁷`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}×10{raised}" if value else "0"


def cosine(value: float) -> str:
    """A cosine near 1, cut (never rounded up) at seven digits."""
    return f"{int(value * 1e7) / 1e7:.7f}"


def interval(figures: Interval) -> str:
    """`0.412 [0.390, 0.433]`."""
    return f"{figures.mean:.3f} [{figures.low:.3f}, {figures.high:.3f}]"


def mark(passed: bool, text: str | None = None) -> Markup:
    """A verdict, or `text` with one, that does not rest on colour alone."""
    if passed:
        return Markup('<span class="pass">✓ {}</span>').format("passed" if text is None else text)
    return Markup('<span class="fail">✗ {}</span>').format("failed" if text is None else text)


def flat(figures: object, prefix: str = "") -> list[tuple[str, object]]:
    """Nested metrics as (dotted name, figure) pairs; lists are passed over."""
    if isinstance(figures, dict):
        return [pair for key, value in figures.items() for pair in flat(value, f"{prefix}.{key}" if prefix else key)]
    return [] if isinstance(figures, list) else [(prefix, figures)]


def listing(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
