"""The opt-in log of admissions: one JSON line per prefill step, who joined from which side at what cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.step.verdict import Decision


class AdmissionLog:
    """A file that gets one line for every prefill step that admitted somebody.

    A line holds ``step`` (prefill steps so far), ``admitted`` (per request ``slot``, ``rid``, ``side``,
    ``prompt`` and ``output`` tokens, the latter estimated, ``cached`` tokens, ``comp`` and ``mem``
    seconds with the cached prefix taken off), ``used`` and ``partition`` (KV tokens, compute and memory
    side), ``root_density`` and ``waiting``.

    Args:
        path: file to append to; None keeps nothing.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._file: TextIO | None = open(path, "a", buffering=1) if path else None  # noqa: SIM115
        self._admitted: list[dict[str, object]] = []
        self._after: dict[str, object] = {}
        self._step = 0

    def admitted(self, planner: Planner, decision: Decision, *, rid: str, prompt: int, cached: int) -> None:
        """Note one admission of this step; call right after the step's own `admitted`.

        Args:
            prompt, cached: tokens of the prompt, and how many of them the cache served.
        """
        if self._file is None:
            return
        slot, cost, state = decision.slot, planner.cost_model, planner.state
        output = planner.table.expected(slot)
        self._admitted.append(
            {
                "slot": slot,
                "rid": rid,
                "side": planner.ledger.side(slot).name.lower(),
                "reason": decision.reason.value,
                "prompt": prompt,
                "output": output,
                "cached": cached,
                "comp": float(cost.comp(prompt, output) - cost.prefix_comp(cached)),
                "mem": float(cost.mem(prompt, output)),
            }
        )
        partition = planner.ledger.scanner.partition
        self._after = {
            "used": [state.used.compute, state.used.memory],
            "partition": [partition.compute, partition.memory],
            "root_density": planner.ledger.scanner.root_density,
            "waiting": state.waiting,
            "decisions": state.reasons,
        }

    def end_step(self) -> None:
        """Write the line of the step that ends here; a step that admitted nobody gets none."""
        if self._file is None or not self._admitted:
            return
        self._step += 1
        self._file.write(json.dumps({"step": self._step, "admitted": self._admitted, **self._after}) + "\n")
        self._admitted = []

    def close(self) -> None:
        """Write what is left and close the file."""
        self.end_step()
        if self._file is not None:
            self._file.close()
            self._file = None
