"""Plots as inline SVG: no script, no outside resource, colours by class from the page's style."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH, HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 26
_ROW: Final = 26
# As many as the page's style has; a plot of more models would tell nothing.
SERIES_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Series:
    """One line: `ys[i]` at `xs[i]`, None where it is broken."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with the least and the greatest value behind it."""

    name: str
    value: float
    low: float
    high: float


def lines(
    title: str,
    series: Sequence[Series],
    labels: Sequence[tuple[float, str]],
    *,
    band: tuple[float, float] | None = None,
) -> str:
    """Lines over a common axis.

    Args:
        title: What a screen reader says of it.
        series: At most `SERIES_MAX` are drawn.
        labels: Where the horizontal axis carries a text.
        band: Drawn as the range that is wanted.
    """
    series = series[:SERIES_MAX]
    xs = [x for one in series for x in one.xs]
    ys = [y for one in series for y in one.ys if y is not None]
    if not ys:
        return ""
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min([*ys, *(band or ())]), max([*ys, *(band or ())])
    if y_low == y_high:
        y_low, y_high = y_low - 0.05, y_high + 0.05

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low)
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    if band:
        (_, top), (_, bottom) = at(x_low, band[1]), at(x_low, band[0])
        width = WIDTH - _LEFT - _RIGHT
        parts.append(
            f'<rect class="band" x="{_LEFT}" y="{top:.1f}" width="{width}" '
            f'height="{bottom - top:.1f}"/>'
        )
    for y in _ticks(y_low, y_high):
        _, height = at(x_low, y)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{height:.1f}" '
            f'y2="{height:.1f}"/><text x="{_LEFT - 6}" y="{height + 4:.1f}" '
            f'text-anchor="end">{y:g}</text>'
        )
    for x, text in labels:
        across, _ = at(x, y_low)
        anchor = "start" if x == x_low < x_high else "end" if x == x_high > x_low else "middle"
        parts.append(
            f'<text x="{across:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{escape(text)}</text>'
        )
    for n, one in enumerate(series):
        for run in _runs(one):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in run))
            parts.append(f'<polyline class="line s{n}" points="{points}"/>')
            if len(run) == 1:
                x, y = at(*run[0])
                parts.append(f'<circle class="dot s{n}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return _svg(title, HEIGHT, parts) + _legend(series)


def bars(title: str, values: Sequence[Bar], low: float) -> str:
    """Horizontal bars from `low` on, each with a whisker from its least to its greatest value."""
    if not values:
        return ""
    left, right = 190, 60
    scale = (WIDTH - left - right) / max(max(one.high for one in values) - low, 1e-9)

    def at(value: float) -> float:
        return left + max(value - low, 0.0) * scale

    parts = []
    for n, one in enumerate(values):
        y = n * _ROW + 4
        middle = y + _ROW / 2 - 4
        parts.append(
            f'<text x="{left - 8}" y="{middle + 4}" text-anchor="end">{escape(one.name)}</text>'
            f'<rect class="bar s{min(n, SERIES_MAX - 1)}" x="{left}" y="{y}" '
            f'width="{at(one.value) - left:.1f}" height="{_ROW - 8}"/>'
            f'<line class="whisker" x1="{at(one.low):.1f}" x2="{at(one.high):.1f}" '
            f'y1="{middle}" y2="{middle}"/>'
            f'<text x="{at(one.high) + 6:.1f}" y="{middle + 4}">'
            f"{one.value:.4f}</text>"
        )
    return _svg(title, len(values) * _ROW + 4, parts)


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {height}" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _legend(series: Sequence[Series]) -> str:
    keys = "".join(
        f'<li><svg aria-hidden="true" viewBox="0 0 28 8" class="key">'
        f'<line class="line s{n}" x1="0" x2="28" y1="4" y2="4"/></svg>{escape(one.name)}</li>'
        for n, one in enumerate(series)
    )
    return f'<ul class="legend">{keys}</ul>'


def _runs(series: Series) -> Iterator[list[tuple[float, float]]]:
    """The unbroken stretches of a line."""
    run: list[tuple[float, float]] = []
    for x, y in zip(series.xs, series.ys, strict=True):
        if y is not None:
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers in [low, high]."""
    power = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(s * power for s in (5, 2, 1) if (high - low) / (s * power) >= 2)
    first = math.ceil(low / step)
    return [round(n * step, 10) for n in range(first, math.floor(high / step) + 1)]
