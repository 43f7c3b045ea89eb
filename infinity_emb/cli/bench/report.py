"""Print the results of a bench, and the ratios of two servers measured in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from infinity_emb.cli.bench.summary import PERCENTILES, Level, Summary
from infinity_emb.cli.tool import print_line, print_table

# With longer delays, the load generator measures itself.
MAX_LATE_MS = 20.0


class Turn(NamedTuple):
    """One server at one level in one round."""

    url: str
    round: int
    summary: Summary


def print_report(turns: Sequence[Turn], urls: Sequence[str]) -> None:
    """Print a table, the ratios of two servers, and a warning if the figures are doubtful."""
    rates = ["requests/s", "inputs/s", "tokens/s"]
    heading = [_name_axis(turns), *rates, *(f"p{each} ms" for each in PERCENTILES), "errors"]
    has_two = len(urls) > 1
    rows = [["server", *heading] if has_two else heading]
    for level in list_levels(turns):
        for url in urls:
            cells = _to_cells(
                [turn.summary for turn in turns if (turn.url, turn.summary.level) == (url, level)]
            )
            rows.append([url, str(level), *cells] if has_two else [str(level), *cells])
    print_table(rows, right_aligned=range(int(has_two), len(rows[0]) - 1))
    if has_two:
        _print_ratios(turns, urls)
    if any(turn.summary.level.per_s and turn.summary.late_ms > MAX_LATE_MS for turn in turns):
        print_line(
            f"1 % of the requests or more were sent over {MAX_LATE_MS:g} ms late: this machine, or opening"
            " connections, is part of these latencies"
        )


def list_levels(turns: Sequence[Turn]) -> list[Level]:
    """Return the levels in the order of their measurement."""
    return list(dict.fromkeys(turn.summary.level for turn in turns))


def find_ratios(turns: Sequence[Turn], urls: Sequence[str], level: Level) -> dict[str, list[float]]:
    """Return the ratios of the second server to the first one in each round, by figure."""
    by_round: dict[int, dict[str, Summary]] = {}
    for turn in turns:
        if turn.summary.level == level:
            by_round.setdefault(turn.round, {})[turn.url] = turn.summary
    ratios: dict[str, list[float]] = {}
    for summaries in by_round.values():
        first, second = (_to_figures(summaries[url]) for url in urls)
        for name, value in second.items():
            if first[name] and value is not None:
                ratios.setdefault(name, []).append(value / (first[name] or 1))
    return ratios


def to_json(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return all turns as JSON values."""
    return [{"url": turn.url, "round": turn.round, **turn.summary.to_dict()} for turn in turns]


def _print_ratios(turns: Sequence[Turn], urls: Sequence[str]) -> None:
    print_line(f"\n{urls[1]} relative to {urls[0]}, median of the rounds (least … largest):")
    rows = [[_name_axis(turns), "requests/s", *(f"p{each}" for each in PERCENTILES)]]
    for level in list_levels(turns):
        ratios = find_ratios(turns, urls, level)
        rows.append([str(level), *(_format_ratios(ratios.get(name, [])) for name in rows[0][1:])])
    print_table(rows)


def _name_axis(turns: Sequence[Turn]) -> str:
    return "rate" if turns[0].summary.level.per_s is not None else "clients"


def _to_figures(summary: Summary) -> Mapping[str, float | None]:
    return {
        "requests/s": summary.requests_per_s,
        **{f"p{percentile}": value for percentile, value in summary.latency_ms.items()},
    }


def _to_cells(summaries: Sequence[Summary]) -> list[str]:
    """Return the medians of the rounds."""
    errors: dict[str, int] = {}
    for summary in summaries:
        for outcome, number in summary.errors.items():
            errors[outcome] = errors.get(outcome, 0) + number
    return [
        _format(median(summary.requests_per_s for summary in summaries)),
        _format(median(summary.inputs_per_s for summary in summaries)),
        _format(find_median([summary.tokens_per_s for summary in summaries])),
        *(
            _format(find_median([each.latency_ms[percentile] for each in summaries]))
            for percentile in PERCENTILES
        ),
        ", ".join(f"{number} × {outcome}" for outcome, number in sorted(errors.items())) or "0",
    ]


def find_median(values: Sequence[float | None]) -> float | None:
    """Return the median of the known values."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _format(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _format_ratios(ratios: Sequence[float]) -> str:
    if not ratios:
        return "–"
    return f"{median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
