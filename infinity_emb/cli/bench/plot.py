"""Plot latency and throughput by level of load, as SVG or as an HTML page that contains it.

Two charts of a few lines need no library: decision 013.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from infinity_emb.cli.bench.report import Turn, find_median, list_levels
from infinity_emb.cli.bench.summary import PERCENTILES
from infinity_emb.errors import StartupError

SUFFIXES = (".svg", ".html")
_WIDTH, _HEIGHT = 460, 300  # of a chart
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 48
_COLORS = ("#0b6e99", "#c2571a")  # of the servers
_DASHES = ("", "6 3", "2 3")  # of the percentiles
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600}.axis{stroke:#888}"
    ".grid{stroke:#ddd}path{fill:none;stroke-width:2}"
)


class Line(NamedTuple):
    """One curve; None where there is no value."""

    label: str
    color: str
    dash: str
    values: list[float | None]


def check_path(path: str) -> None:
    """Raise StartupError for a name that is neither SVG nor HTML."""
    if not path.endswith(SUFFIXES):
        raise StartupError(f"--plot {path!r} must end in {' or '.join(SUFFIXES)}")


def write_plot(path: str, turns: Sequence[Turn], urls: Sequence[str], title: str) -> None:
    """Write the plot. Raises OSError."""
    svg = draw_plot(turns, urls, title)
    if path.endswith(".html"):
        head = f'<meta charset="utf-8"><title>{escape(title)}</title>'
        svg = f'<!doctype html><html lang="en"><head>{head}</head><body>{svg}</body></html>'
    Path(path).write_text(f"{svg}\n", encoding="utf-8")


def draw_plot(turns: Sequence[Turn], urls: Sequence[str], title: str) -> str:
    """Return SVG of two charts side by side."""
    levels = list_levels(turns)
    axis = "requests/s offered" if levels[0].per_s is not None else "clients"
    summaries = {
        (url, level): [turn.summary for turn in turns if (turn.url, turn.summary.level) == (url, level)]
        for url in urls
        for level in levels
    }
    latencies, rates = [], []
    for url, color in zip(urls, _COLORS, strict=False):
        by_level = [summaries[url, level] for level in levels]
        medians_of_rates = [find_median([each.requests_per_s for each in some]) for some in by_level]
        rates.append(Line(url, color, "", medians_of_rates))
        for percentile, dash in zip(PERCENTILES, _DASHES, strict=True):
            values = [find_median([each.latency_ms[percentile] for each in some]) for some in by_level]
            latencies.append(Line(f"p{percentile}" + f" {url}" * (len(urls) > 1), color, dash, values))
    ticks = [f"{level.value:g}" for level in levels]
    height = _HEIGHT + 18 * (1 + len(latencies))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _WIDTH} {height}" role="img"'
        f' aria-label="{escape(title, quote=True)}"><style>{_STYLE}</style>'
        f'<rect width="{2 * _WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="{_LEFT}" y="18">{escape(title)}</text>'
        f"{_draw_chart('Latency, ms', axis, ticks, latencies)}"
        f'<g transform="translate({_WIDTH})">{_draw_chart("Requests/s", axis, ticks, rates)}</g></svg>'
    )


def _draw_chart(title: str, axis: str, ticks: Sequence[str], lines: Sequence[Line]) -> str:
    top = find_round_maximum([value for line in lines for value in line.values if value is not None])
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    xs = [_LEFT + (right - _LEFT) * (index + 0.5) / len(ticks) for index in range(len(ticks))]
    parts = [f'<text class="title" x="{_LEFT}" y="{_TOP - 6}">{title}</text>']
    for step in range(6):
        y = bottom - (bottom - _TOP) * step / 5
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * step / 5:g}</text>')
    for x, tick in zip(xs, ticks, strict=True):
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 36}" text-anchor="middle">{axis}</text>')
    for number, line in enumerate(lines):
        points = [
            (x, bottom - (bottom - _TOP) * value / top)
            for x, value in zip(xs, line.values, strict=True)
            if value is not None
        ]
        parts.append(_draw_line(points, line, legend_y=_HEIGHT + 18 * number))
    return "".join(parts)


def _draw_line(points: Sequence[tuple[float, float]], line: Line, *, legend_y: int) -> str:
    style = f'stroke="{line.color}" stroke-dasharray="{line.dash}"'
    path = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.color}"/>' for x, y in points)
    legend = f'<path {style} d="M{_LEFT} {legend_y}h28"/>'
    label = f'<text x="{_LEFT + 36}" y="{legend_y + 4}">{escape(line.label)}</text>'
    return f'<path {style} d="{path}"/>{dots}{legend}{label}'


def find_round_maximum(values: Sequence[float]) -> float:
    """Return the least of 1, 2, 2.5 and 5 times a power of ten that covers the values."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= largest)
