"""Measurements, as rows of a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

GEMM, DECODE, PREFILL, ALL_REDUCE = "GEMM", "decode attention", "prefill attention", "all-reduce"
TOGETHER, DIVIDED = "both at once", "both, SMs divided"
GEMM_PART, DECODE_PART = "GEMM, part of the SMs", "decode, part of the SMs"


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement of one decoder layer's work on one rank.

    Attributes:
        kind: one of the names above.
        seconds: measured.
        rows: of the GEMMs, or of the hidden states that are reduced.
        requests: sequences that attend.
        new_tokens, cached_tokens: of each sequence that is prefilled.
        kv_tokens: KV tokens that decoding requests read, summed over them.
        compute_sms, memory_sms: SMs of the GEMMs and of decode attention; 0 for the whole GPU.
        compute_times, memory_times: how often GEMMs and decode attention ran where they ran at once.
        compute_alone, memory_alone: seconds of all those runs with nobody beside them, on the same SMs.
        ranks: GPUs that took part.
    """

    kind: str
    seconds: float
    rows: int = 0
    requests: int = 0
    new_tokens: int = 0
    cached_tokens: int = 0
    kv_tokens: int = 0
    compute_sms: int = 0
    memory_sms: int = 0
    compute_times: int = 1
    memory_times: int = 1
    compute_alone: float = 0.0
    memory_alone: float = 0.0
    ranks: int = 1

    def __str__(self) -> str:
        given = [(field.name, getattr(self, field.name)) for field in fields(self)[2:]]
        words = [
            f"{value} {name.replace('_', ' ')}"
            for name, value in given
            if isinstance(value, int) and value > 1
        ]
        return f"{self.kind}: {', '.join(words) or '1 row'}"


def write_points(path: Path, points: Iterable[Point]) -> None:
    """Write a CSV table with a column for each field."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def read_points(path: Path) -> list[Point]:
    """The inverse of `write_points`."""
    kinds = {"str": str, "int": int, "float": float}
    with path.open(newline="") as file:
        return [
            Point(**{field.name: kinds[str(field.type)](row[field.name]) for field in fields(Point)})
            for row in csv.DictReader(file)
        ]


def of_kind(points: Sequence[Point], *kinds: str) -> list[Point]:
    return [point for point in points if point.kind in kinds]
