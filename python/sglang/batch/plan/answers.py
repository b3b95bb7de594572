"""How long the answers of a pool are assumed to be, before any of them is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.batch.plan.prompts import BadLine, Prompts
from sglang.srt.blend.core.pool.output_length import OPEN_TOKENS
from sglang.srt.blend.core.pool.workload import Workload


@dataclass(frozen=True)
class Answers:
    """On what grounds the lengths are assumed.

    Attributes:
        fixed: requests that fix their length themselves (ignore_eos, or min_tokens as large as max_tokens).
        capped: requests of which max_tokens is known; their answers take `assumed` tokens, or max_tokens
            where that is less.
        open: requests of which nothing is known; their answers take `open_assumed` tokens.
        assumed: tokens; None where every request of `capped` takes max_tokens.
        open_assumed: tokens.
    """

    fixed: int
    capped: int
    open: int
    assumed: int | None
    open_assumed: int

    def text(self) -> str:
        """Say it in one line."""
        capped = "as long as max_tokens allows" if self.assumed is None else f"{self.assumed:,} or max_tokens"
        parts = [
            (self.fixed, "fixed by the request"),
            (self.capped, capped),
            (self.open, f"without max_tokens: {self.open_assumed:,}"),
        ]
        return ", ".join(f"{count:,} {what}" for count, what in parts if count)


class AssumedPool(NamedTuple):
    """The requests that can be run, with assumed output lengths.

    Attributes:
        kept: (n,) index into the prompts of each request of the workload.
        refused: lines whose prompts leave no room for an answer.
    """

    workload: Workload
    answers: Answers
    refused: tuple[BadLine, ...]
    kept: NDArray[np.int64]


def assume_answers(prompts: Prompts, *, output_tokens: int | None, longest: int) -> AssumedPool:
    """Give every request an output length.

    Args:
        output_tokens: assumed length of an answer that its request does not fix; None assumes max_tokens.
        longest: tokens that one request may hold; SGLang cuts longer answers off and refuses prompts that
            leave no room for any.
    """
    length = np.diff(prompts.offsets)
    fits = length < longest
    refused = tuple(
        BadLine(
            int(prompts.line[i]),
            prompts.custom_ids[i],
            "prompt_too_long",
            f"line {prompts.line[i]}: a prompt of {length[i]:,} tokens; there is room for {longest:,}",
        )
        for i in np.flatnonzero(~fits)
    )
    open_tokens = output_tokens or OPEN_TOKENS
    cap, known = prompts.cap, prompts.known
    likely = np.where(cap > 0, np.minimum(cap, output_tokens or cap), open_tokens)
    room = np.maximum(longest - length, 1)
    output = np.maximum(np.minimum(np.where(known > 0, known, likely), room), 1).astype(np.int32)
    limit = np.minimum(np.where(known > 0, known, np.where(cap > 0, cap, room)), room)
    whole = Workload(
        tokens=prompts.tokens,
        offsets=prompts.offsets,
        output=output,
        max_new_tokens=np.maximum(limit, 1).astype(np.int32),
        known=known > 0,
        source=np.zeros(len(length), np.int16),
        names=("batch",),
    )
    kept = np.flatnonzero(fits)
    answers = Answers(
        fixed=int(np.sum(known[kept] > 0)),
        capped=int(np.sum((known[kept] == 0) & (cap[kept] > 0))),
        open=int(np.sum((known[kept] == 0) & (cap[kept] == 0))),
        assumed=output_tokens,
        open_assumed=open_tokens,
    )
    return AssumedPool(whole if fits.all() else whole.take(kept), answers, refused, kept)
