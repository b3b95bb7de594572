"""What the paper (ASPLOS 2026, section 6) says beside the figures that have a bar, next to what we get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

from benchmark.paper.report import Line, Record, lines

Row = tuple[str, str, str]
"""Figure, what the paper says, what we get."""


def against_paper(table: str, records: Sequence[Record]) -> list[Row]:
    """Rows for a table whose runs are all there; none for tables that the paper does not have."""
    rows = _TABLES.get(table)
    return rows(records) if rows else []


def _gains(paper: str) -> Callable[[Sequence[Record]], list[Row]]:
    def rows(records: Sequence[Record]) -> list[Row]:
        return [("blend over dfs, overlapped", paper, _span(lines(records)))]

    return rows


def _headline(records: Sequence[Record]) -> list[Row]:
    best = [r for r in records if (r["policy"], r["engine"]) == ("blend", "overlapped")]
    here = ", ".join(f"{record['throughput']:.0f}" for record in best)
    return [("tokens/s of blend, traces 1 to 4", "11080, 8408, 8403, 6325", here)]


def _traces(records: Sequence[Record]) -> list[Row]:
    seconds = {
        (record["policy"], record["trace"]): record["seconds"]
        for record in records
        if record["engine"] == "overlapped"
    }
    gain = mean(seconds["random", trace] / seconds["blend", trace] for trace in (1, 2))
    kept = [r["sharing_reached"] / r["sharing_possible"] for r in records if r["policy"] == "random"]
    return [
        ("blend over random, overlapped, traces 1 and 2", "1.36x", f"{gain:.2f}x"),
        ("sharing kept in random order", "< 30%", f"{min(kept):.0%} to {max(kept):.0%}"),
    ]


def _models(records: Sequence[Record]) -> list[Row]:
    large = lines([record for record in records if record["model"] == "llama-3-70b"])
    others = lines([record for record in records if not record["model"].startswith("llama-3")])
    return [
        ("blend over dfs, overlapped, Llama-3-70B", "1.186x (four traces)", _span(large)),
        ("share of practical optimum, Llama-3-70B", "90.8%", _share(large)),
        ("share of practical optimum, other models", "89.9%", _share(others)),
    ]


def _span(table: Sequence[Line]) -> str:
    gains = [line.overlapped for line in table if line.overlapped is not None]
    return f"{min(gains):.2f}x to {max(gains):.2f}x, mean {mean(gains):.3f}x"


def _share(table: Sequence[Line]) -> str:
    return f"{mean(line.optimum_share or 0.0 for line in table):.1%}"


_TABLES: dict[str, Callable[[Sequence[Record]], list[Row]]] = {
    "headline": _headline,
    "traces": _traces,
    "models": _models,
    "grid": _gains("1.14x to 1.34x, mean 1.225x"),
    "azure": _gains("up to 1.31x"),
    "variance": _gains("up to 1.17x (ShareGPT), from 1.08x (WildChat)"),
}
