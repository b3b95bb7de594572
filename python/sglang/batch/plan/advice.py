"""Which flags to start SGLang with, and why, from simulated times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sglang.batch.plan.schedules import Schedule
from sglang.srt.blend.core.cost.engines import ENGINE_FLAGS, engine_names

WORTH_IT = 1.02
"""Ratio of simulated times from which a flag is recommended: smaller gains are below the time model's error
of 3 to 4%."""

WORTH_PDMUX = 1.05
"""The same for PD multiplexing, whose model rests on more that is assumed."""

SERVER_POLICY = {"dfs": "fcfs", "random": "fcfs"}
"""Policy of the server behind an order that the file itself is brought into."""


@dataclass(frozen=True)
class Flag:
    """A recommendation and its reason; `text` is empty where it is to leave something as it is."""

    text: str
    why: str


@dataclass(frozen=True)
class Advice:
    """Flags for the schedule that was simulated fastest, and what is worth a try beyond it."""

    flags: tuple[Flag, ...]
    try_too: tuple[Flag, ...]

    @property
    def command_line(self) -> str:
        """The recommended flags as they are typed."""
        return " ".join(flag.text for flag in self.flags if flag.text)

    def lines(self) -> Iterator[str]:
        """Write it for the report, a line at a time."""
        yield f"\n  recommended: {self.command_line}"
        for flag in self.flags:
            yield f"    {flag.text or '(no flag)'}: {flag.why}"
        for flag in self.try_too:
            yield f"  worth a try: {flag.text}"
            yield f"    {flag.why}"


@dataclass(frozen=True)
class Machine:
    """What the simulations ran with.

    Attributes:
        chunk: tokens per prefill chunk; 0 or less prefills prompts whole.
        chunk_efficiency: share of the best modelled GEMM rate that a pass of that size reaches, 0 to 1.
        static: share of a GPU's memory for weights and KV cache, 0 to 1; `spare_bytes` is the rest.
        weight_bytes: one GPU's share of the model.
        tensor_parallel: GPUs that share the model.
        tensor_parallel_chosen: whether their number was chosen for the user, who did not name one.
    """

    chunk: int
    chunk_efficiency: float
    static: float
    spare_bytes: float
    weight_bytes: float
    tensor_parallel: int
    tensor_parallel_chosen: bool


def advise(seconds: Mapping[Schedule, float], machine: Machine, *, everything_fits: bool) -> Advice:
    """Choose among simulated schedules.

    Args:
        seconds: simulated seconds of the same requests; at least one schedule.
        everything_fits: whether all requests have room in the KV cache at once.
    """
    engine, engine_flag = _engine(seconds)
    policy_flag = _policy(seconds, engine, everything_fits=everything_fits)
    return Advice(
        flags=(policy_flag, engine_flag, *_sizes(machine)),
        try_too=tuple(_pdmux(seconds, engine)),
    )


def _least(seconds: Mapping[Schedule, float], engine: str) -> float:
    """Seconds of the fastest policy on an engine; infinite where none was simulated on it."""
    times = (time for schedule, time in seconds.items() if schedule.engine == engine)
    return min(times, default=float("inf"))


def _engine(seconds: Mapping[Schedule, float]) -> tuple[str, Flag]:
    """Choose between prefill and decode in passes of their own and in one; PD multiplexing is only tried."""
    alternating, mixed = _least(seconds, "alternating"), _least(seconds, "mixed")
    engines = {schedule.engine for schedule in seconds}
    if len(engines & {"alternating", "mixed"}) < 2:
        only = min(engines, key=engine_names().index)
        text = ENGINE_FLAGS[only] if only in ("mixed", "pdmux") else ""
        return only, Flag(text, f"nothing but {', '.join(sorted(engines))} was simulated.")
    gain = alternating / mixed
    if gain >= WORTH_IT:
        why = f"prefill and decode in one pass read the weights once for both: {gain:.2f}x (simulated)."
        return "mixed", Flag("--enable-mixed-chunk", why)
    change = f"--enable-mixed-chunk would change the simulated time by {1 / gain - 1:+.1%}"
    small = ", within the model's error" if gain > 1 / WORTH_IT else ""
    return "alternating", Flag("", f"{change}{small}.")


def _policy(seconds: Mapping[Schedule, float], engine: str, *, everything_fits: bool) -> Flag:
    times = {schedule.policy: time for schedule, time in seconds.items() if schedule.engine == engine}
    others = {policy: time for policy, time in times.items() if policy != "blend"}
    fits = " All requests fit into the KV cache at once, so order matters little." if everything_fits else ""
    if "blend" not in times:
        best = min(others, key=lambda policy: others[policy])
        return Flag(_policy_text(best), f"{_prepared(best)}the fastest of those simulated.{fits}")
    if not others:
        return Flag(_policy_text("blend"), "nothing was simulated to compare it with.")
    best = min(others, key=lambda policy: others[policy])
    gain = others[best] / times["blend"]
    gains = ", ".join(f"{time / times['blend']:.2f}x over {policy}" for policy, time in others.items())
    if gain >= WORTH_IT:
        return Flag(_policy_text("blend"), f"{gains} on the {engine} engine (simulated).")
    if gain > 1 / WORTH_IT:
        return Flag(
            _policy_text("blend"),
            f"as fast as the best other order, {best}, within the model's error, whatever the order of the"
            f" file: {gains} (simulated).{fits}",
        )
    why = f"{_prepared(best)}blend takes {1 / gain:.2f}x its simulated time on this pool.{fits}"
    return Flag(_policy_text(best), why)


def _policy_text(policy: str) -> str:
    return f"--schedule-policy {SERVER_POLICY.get(policy, policy)}"


def _prepared(policy: str) -> str:
    """Say what must happen to the file before the server gets it, for orders that are the file's."""
    return {"dfs": "with the file sorted by prompt; ", "random": "with the file shuffled; "}.get(policy, "")


def _sizes(machine: Machine) -> Iterator[Flag]:
    yield Flag(
        f"--chunked-prefill-size {machine.chunk}",
        f"as simulated; a pass of that size reaches {machine.chunk_efficiency:.0%} of the best modelled rate."
        if machine.chunk > 0
        else "as simulated; prompts are prefilled whole.",
    )
    yield Flag(
        f"--mem-fraction-static {machine.static:.2f}",
        f"as simulated; leaves {machine.spare_bytes / 1e9:.1f} GB for activations and CUDA graphs. Lower it,"
        " or the chunk size, if memory runs out.",
    )
    reason = "as few GPUs as hold the model" if machine.tensor_parallel_chosen else "as asked for"
    yield Flag(
        f"--tp-size {machine.tensor_parallel}",
        f"{reason}; each keeps {machine.weight_bytes / 1e9:.1f} GB of weights.",
    )


def _pdmux(seconds: Mapping[Schedule, float], engine: str) -> Iterator[Flag]:
    divided = {run.policy: time for run, time in seconds.items() if run.engine == "pdmux"}
    if not divided:
        return
    policy = min(divided, key=lambda name: divided[name])
    gain = _least(seconds, engine) / divided[policy]
    if gain >= WORTH_PDMUX or engine == "pdmux":
        yield Flag(
            f"{_policy_text(policy)} {ENGINE_FLAGS['pdmux']} --pdmux-config-path FILE",
            f"{_prepared(policy)}{gain:.2f}x over the above (simulated), with FILE from --write-pdmux-config."
            " How parts of a GPU disturb each other is assumed: measure it first. SGLang warns that it may be"
            " slow with PyTorch newer than 2.6.",
        )
