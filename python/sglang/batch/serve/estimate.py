"""What a batch asks for, before it is run: pieces of its file, and the lengths of earlier answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sglang.batch.endpoints import ENDPOINTS
from sglang.batch.records import BatchRequest, parse_line
from sglang.batch.run.lengths import Lengths
from sglang.srt.blend.core.pool.output_length import OPEN_TOKENS, prior_tokens

PIECES, PIECE = 32, 1 << 14
"""Of a file, so many pieces of so many bytes are read, evenly spread."""

LINE = 1 << 22
"""Bytes that are read of one line at most."""

TOKENS_PER_BYTE = 0.25
"""Prompt tokens for each byte of a line, before any were counted."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the lines of a batch are like.

    Attributes:
        lines: about so many.
        line_bytes: of a line, on average.
        output: tokens of an answer, on average.
        learned: part of the lines whose answers are expected to be as long as earlier ones.
    """

    lines: int
    line_bytes: float
    output: float
    learned: float


def estimate(path: Path, lengths: Lengths) -> Estimate:
    """Look into a batch's file; one without lines that can be run is nothing.

    Raises:
        OSError: it cannot be read.
    """
    size = total = learned = count = 0
    output = 0.0
    with path.open("rb") as file:
        whole = file.seek(0, 2)
        for raw in _lines(file, whole):
            size += len(raw)
            request = parse_line(0, raw)
            if isinstance(request, BatchRequest):
                count += 1
                tokens, known = _expected(request, lengths)
                output += tokens
                learned += known
            total += 1
    if not count:
        return Estimate(0, 0.0, 0.0, 0.0)
    return Estimate(max(round(whole * total / size), 1), size / total, output / count, learned / count)


def _lines(file: BinaryIO, whole: int) -> Iterator[bytes]:
    """Read lines of pieces that are evenly spread, none twice."""
    step = max(whole // PIECES, PIECE)
    end = file.seek(0)
    for begin in range(0, whole, step):
        if begin > end:
            file.seek(begin)
            file.readline(LINE)  # whose beginning lies before
        while (place := file.tell()) < min(begin + PIECE, whole):
            raw = file.readline(LINE)
            if raw.strip():
                yield raw
            end = place + len(raw)


def _expected(request: BatchRequest, lengths: Lengths) -> tuple[float, bool]:
    """Tokens of an answer, and whether earlier ones say so."""
    if ENDPOINTS[request.url].generates is not True:
        return 0.0, True
    if (expected := lengths.expected(request)) is not None:
        return float(expected), True
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    caps = [request.body.get(name) for name in names]
    cap = next((cap for cap in caps if isinstance(cap, int) and cap > 0), None)
    return float(OPEN_TOKENS if cap is None else prior_tokens(cap)), False
