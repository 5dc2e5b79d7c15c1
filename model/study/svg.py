"""A line chart as SVG text: a picture for the documents, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 380, 60, 230, 40, 50
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")
_NUM_TICKS = 5


@dataclass(frozen=True)
class Series:
    """A named line through (x, y) points."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str, log_x: bool = False) -> str:
    """A chart with a tick at every x that occurs and a legend beside it.

    Args:
        series: the lines, at least one point in all.
        title: above the chart.
        x_label: below it.
        y_label: at its left.
        log_x: logarithmic x axis; every x is positive then.
    """
    scale_x = math.log if log_x else float
    xs = sorted({x for line in series for x, _ in line.points})
    ys = [y for line in series for _, y in line.points]
    low_y, high_y = min(ys), max(ys)
    left, right = scale_x(xs[0]), scale_x(xs[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (scale_x(x) - left) / ((right - left) or 1)
        up = (y - low_y) / ((high_y - low_y) or 1)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 22, title, size=14),
        _text(_LEFT, _HEIGHT - 10, x_label),
        _text(8, _TOP - 4, y_label),
    ]
    for x in xs:
        across, down = place(x, low_y)
        parts.append(_text(across - 8, down + 18, f"{x:g}"))
    for tick in range(_NUM_TICKS):
        y = low_y + (high_y - low_y) * tick / (_NUM_TICKS - 1)
        across, down = place(xs[0], y)
        parts.append(f'<path d="M{across:.1f} {down:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(_text(8, down + 4, f"{y:.3g}"))
    for number, line in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in sorted(line.points))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        row = _TOP + 18 * number
        parts.append(f'<rect x="{_WIDTH - _RIGHT + 14}" y="{row - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 30, row, line.name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, *, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{escape(text)}</text>'
