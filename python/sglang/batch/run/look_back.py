"""What a finished run looks like with its real lengths: its prefix groups, and what fcfs would have taken.

The prompts are read again and tokenized by processes of their own, as `sglang-batch plan` does, and lengths
come from the journal: nothing of this was kept while the run had better things to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sglang.batch.input.source import Source
from sglang.batch.media import MediaPolicy
from sglang.batch.plan.command import read_in_a_process
from sglang.batch.plan.excerpt import choose_excerpt
from sglang.batch.plan.groups import Group, find_groups
from sglang.batch.plan.schedules import NotSimulated, Schedule, Simulated, simulate_all, simulator_processes
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.pool.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sglang.batch.plan.prompts import Prompts

READ_LINES = 20_000
"""Lines that are read again at most, the first ones."""

BASELINE = "fcfs"
"""Policy that a run is compared with."""


@dataclass(frozen=True)
class LookBack:
    """A finished run, analysed.

    Attributes:
        read: lines that were read again, of `lines`.
        requests: requests of these that were answered.
        groups: requests that share a prefix, with real lengths; those with most work first.
        excerpt: requests that were simulated.
        kv_capacity: KV tokens, in the run and in the simulations.
        simulated: of the excerpt: the run's policy and `BASELINE`; failed: those that could not be.
    """

    lines: int
    read: int
    requests: int
    hardware: str
    engine: str
    kv_capacity: int
    groups: tuple[Group, ...]
    excerpt: int
    simulated: tuple[Simulated, ...]
    failed: tuple[NotSimulated, ...]

    def seconds(self, policy: str) -> float | None:
        """Simulated seconds of the excerpt; None where it was not simulated."""
        return next((run.seconds for run in self.simulated if run.schedule.policy == policy), None)


def look_back(
    sources: Sequence[Source],
    server: list[str],
    media: MediaPolicy,
    completions: Mapping[int, int],
    *,
    lines: int,
    policy: str,
    hardware: str,
    engine: str,
    kv_capacity: int,
    tensor_parallel: int,
    simulate_requests: int,
) -> LookBack:
    """Analyse a finished run.

    Args:
        sources, server, media: the run's inputs, flags of the server, and what requests may name.
        completions: output tokens of each answered line by its position.
        lines: how many the inputs have.
        policy, hardware, engine: of the run, as `simulate` names them.
        kv_capacity: tokens, of the run.
        simulate_requests: at most; 0 simulates nothing.

    Raises:
        BadUsage: the inputs, or the model's config or tokenizer, cannot be read any more.
        LookupError: none of the lines that were read was answered.
    """
    with simulator_processes(2) as processes:
        prompts = read_in_a_process(processes, sources, server, media, quiet=True, limit=READ_LINES)
        workload, kept = with_real_lengths(prompts, completions)
        model = replace(prompts.model, server={**prompts.model.server, "max_total_tokens": kv_capacity})
        cost = CostModel(model.shape(tensor_parallel), load_hardware(hardware))
        groups = find_groups(workload, prompts, kept, cost)
        part, results = workload, []
        if simulate_requests:
            part = workload.take(choose_excerpt(workload, simulate_requests, cost))
            schedules = [Schedule(name, engine) for name in dict.fromkeys((policy, BASELINE))]
            results = list(
                simulate_all(
                    processes, schedules, part, model, hardware=hardware, tensor_parallel=tensor_parallel
                )
            )
    return LookBack(
        lines=lines,
        read=prompts.lines,
        requests=len(workload),
        hardware=hardware,
        engine=engine,
        kv_capacity=kv_capacity,
        groups=tuple(groups),
        excerpt=len(part) if simulate_requests else 0,
        simulated=tuple(_baseline_last(run for run in results if isinstance(run, Simulated))),
        failed=tuple(run for run in results if isinstance(run, NotSimulated)),
    )


def _baseline_last(runs: Iterable[Simulated]) -> list[Simulated]:
    """Order simulations as they were asked for, not as they ended."""
    return sorted(runs, key=lambda run: run.schedule.policy == BASELINE)


def with_real_lengths(prompts: Prompts, completions: Mapping[int, int]) -> tuple[Workload, NDArray[np.int64]]:
    """Make a workload of the requests that were answered.

    Args:
        completions: output tokens of each answered line by its position; a line with several answers is
            several requests, which get equal parts.

    Returns:
        The workload, and the index into `prompts` of each of its requests.

    Raises:
        LookupError: no request was answered.
    """
    tokens = np.array([completions.get(position, 0) for position in prompts.position.tolist()], np.int64)
    answers = np.bincount(prompts.position)[prompts.position] if len(tokens) else tokens
    kept = np.flatnonzero(tokens > 0)
    if not len(kept):
        raise LookupError("none of the lines that were read was answered")
    output = np.maximum(tokens // np.maximum(answers, 1), 1)
    limit = np.where(prompts.known > 0, prompts.known, np.where(prompts.cap > 0, prompts.cap, output))
    whole = Workload(
        tokens=prompts.tokens,
        offsets=prompts.offsets,
        output=output.astype(np.int32),
        max_new_tokens=np.maximum(limit, output).astype(np.int32),
        known=(prompts.known > 0) & (output == prompts.known),
        source=np.zeros(len(output), np.int16),
        names=("batch",),
    )
    return (whole if len(kept) == len(output) else whole.take(kept)), kept
