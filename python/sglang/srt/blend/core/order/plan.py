"""What a planner is told, and what it makes: options, a blended window, an admission order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.order.begun import begun_requests
from sglang.srt.blend.core.order.judge import Judge
from sglang.srt.blend.core.order.lines import lines
from sglang.srt.blend.core.order.ordering import DensityOrder, order_by_density, order_of_arrival
from sglang.srt.blend.core.order.snapshot import Snapshot
from sglang.srt.blend.core.pool.prefix_tree import ResourceAwarePrefixTree, densities
from sglang.srt.blend.core.step.dual_scan import ScanOrder, scan_to_the_end
from sglang.srt.blend.core.step.leaders import CACHE_SHARE
from sglang.srt.blend.core.step.partition import share_tokens

Ints = NDArray[np.int64]

_SURELY, _GUESSED = 0.02, 0.1
# Shares of its time by which another order has to end sooner than that of density, and prefill that is not
# spread sooner than that which is. A judge errs by less where lengths are known, and where nothing is paced.

_LITTLE_SHARING, _SAME = 50, 1.5
# Requests are alike if they share less than one prompt token in so many, and if neither their densities nor
# the answers that are expected of them differ by more than so many times.


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """How to plan.

    Attributes:
        sample_fraction: share of requests of unknown length to run first, in [0, 1].
        sharing_budget: share of the depth-first sharing that node splits must keep, in [0, 1].
        replan_interval: completions after which a new plan pays.
        window: plan only among this many requests in order of arrival, draining one window before the
            next begins (paper 7, deadlines); 0 is the whole pool.
        patience: admissions, per request that waited, after which those that were passed over go first.
        group_fraction: share of the KV capacity up to which neighbours with a common prefix are one
            schedulable group.
        split: False leaves the tree whole (for ablation).
        memory: finished requests whose answers are remembered for estimates.
        line: a name of `lines`, whose order is taken whatever it costs (for ablation); "" for none.
    """

    sample_fraction: float = 0.01
    sharing_budget: float = 0.99
    replan_interval: int = 256
    window: int = 0
    patience: float = 4.0
    group_fraction: float = 1 / 16
    split: bool = True
    memory: int = 8192
    line: str = ""

    def __post_init__(self) -> None:
        for name in ("sample_fraction", "sharing_budget", "group_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.replan_interval < 1:
            raise ValueError(f"replan_interval must be at least 1, got {self.replan_interval}")
        if self.window < 0 or self.memory < 0:
            raise ValueError("window and memory must not be negative")
        if not self.patience >= 0.0:
            raise ValueError(f"patience must not be negative, got {self.patience}")


@dataclass(frozen=True, slots=True)
class Plan:
    """The admission order of a whole pool.

    Attributes:
        slots: (n,) requests in order of admission.
        sides: (n,) `Side` from which each is admitted.
        steps: (n,) decoding step of admission if estimates hold, dimensionless.
        density: of the pool with the sharing of this plan.
        shared_tokens: prompt tokens that the density order shares; possible_tokens: that a depth-first
            walk shares.
        splits: subtrees moved.
    """

    slots: Ints
    sides: Ints
    steps: NDArray[np.float64]
    density: float
    shared_tokens: int
    possible_tokens: int
    splits: int


@dataclass(frozen=True, slots=True)
class OrderedWindow:
    """One window in density order.

    Attributes:
        slots: (n,) requests; density, scan: what the scanner walks, in the same order.
        sequence: (n,) numbers of their arrivals.
        prompt: tokens of all its prompts; possible: those that a depth-first walk shares.
    """

    slots: Ints
    sequence: Ints
    density: DensityOrder
    scan: ScanOrder
    prompt: int
    possible: int

    def only(self, kept: NDArray[np.bool_]) -> OrderedWindow:
        """The requests whose flag (n,) is set; what the plan says of the whole window stays."""
        if kept.all():
            return self
        scan = replace(
            self.scan,
            **{
                field.name: getattr(self.scan, field.name)[kept]
                for field in fields(self.scan)
                if field.name not in ("one_line", "paced", "visits")
            },
        )
        return replace(self, slots=self.slots[kept], sequence=self.sequence[kept], scan=scan)


def _alike(tree: ResourceAwarePrefixTree, prompt: Ints, estimate: Ints, generated: Ints) -> bool:
    """Whether no order of these requests promises to be better than another.

    They share next to nothing, need the same resources, and nothing tells long answers from short ones. What
    an order gains or loses then is luck, so it might as well be that of those who wrote the file. Requests
    that were retracted do not count: they know more of themselves.
    """
    if tree.shared_tokens * _LITTLE_SHARING > int(prompt.sum()):
        return False
    both = np.array([densities(tree.comp, tree.mem), estimate])[:, generated == 0]
    return bool(np.all(both.max(axis=1, initial=0.0) <= _SAME * both.min(axis=1, initial=np.inf)))


def order_window(
    requests: Snapshot,
    cost_model: CostModel,
    options: PlannerOptions,
    kv_capacity: int,
    judge: Judge | None = None,
) -> OrderedWindow:
    """Sort by density, split and merge requests, or take another order that ends sooner.

    Nothing but the arguments is looked at, so it may run beside the steps.

    Args:
        requests: those to order; if they are all alike, they go in order of arrival.
        kv_capacity: tokens.
        judge: foresees when orders end; the density order is taken without one.
    """
    output = np.maximum(requests.output, 1)
    tree = requests.prompts.tree(requests.prompt, output, cost_model, extra_comp=requests.extra)
    if len(output) and _alike(tree, requests.prompt, requests.estimate, requests.generated):
        return _window(requests, tree, output, order_of_arrival(tree, requests.sequence), one_line=True)
    held = requests.held if requests.cached is None else np.maximum(requests.held, requests.cached)
    begun = begun_requests(tree, held, kv_capacity, stream=requests.stream)
    others = {}
    if len(output) and (judge is not None or options.line):
        others = {
            name: _window(requests, tree, output, order, one_line=True, visits=True)
            for name, order in lines(tree, output, requests.sequence, begun).items()
        }
    if options.line and others:
        return others[options.line]
    density = order_by_density(
        tree,
        cost_model,
        sharing_budget=options.sharing_budget,
        before=requests.before,
        longest_cut=kv_capacity / CACHE_SHARE,
        group_tokens=int(kv_capacity * options.group_fraction),
        split=options.split,
        begun=begun,
        stream=requests.stream,
    )
    window = _window(requests, tree, output, density, one_line=False)
    if judge is None or not others:
        return window
    ends = partial(_ends, judge, tree, requests, kv_capacity)
    doubtful = judge.paced and requests.guessed and not requests.few
    surely = _GUESSED if doubtful else _SURELY
    return _best(window, list(others.values()), ends, judge.paced, 1.0 - surely)


def _ends(
    judge: Judge, tree: ResourceAwarePrefixTree, requests: Snapshot, kv_capacity: int, one: OrderedWindow
) -> float:
    order = one.density.order
    if requests.scenarios is None:
        return judge.seconds(one.scan, order, tree, requests, kv_capacity)
    each = np.ascontiguousarray(requests.scenarios[order].T)  # the judge's kernel is compiled for whole rows
    return float(np.mean([judge.seconds(one.scan, order, tree, requests, kv_capacity, out) for out in each]))


def _best(
    window: OrderedWindow,
    others: Sequence[OrderedWindow],
    ends: Callable[[OrderedWindow], float],
    paced: bool,
    least: float,
) -> OrderedWindow:
    """The density order, unless another one, or prefill that is not spread, surely ends sooner.

    Args:
        least: share of its seconds that others must not exceed.
    """
    end, best = ends(window), window
    for other in others:
        sooner = ends(other)
        if sooner < end * (1.0 if best is not window else least):
            end, best = sooner, other
    if paced:
        at_once = replace(best, scan=replace(best.scan, paced=False))
        if ends(at_once) < end * least:
            return at_once
    return best


def _window(
    requests: Snapshot,
    tree: ResourceAwarePrefixTree,
    output: Ints,
    density: DensityOrder,
    *,
    one_line: bool,
    visits: bool = False,
) -> OrderedWindow:
    """An order of the tree's requests, as the scanner walks it."""
    order, slots = density.order, requests.prompts.slots
    new_tokens = requests.prompt[order] - np.maximum(density.shared, requests.held[order])
    return OrderedWindow(
        slots=slots[order],
        sequence=requests.sequence[order],
        density=density,
        scan=ScanOrder(
            slots=slots[order],
            density=density.group_density[density.group],
            new_tokens=new_tokens,
            output=output[order],
            share=share_tokens(new_tokens, output[order]),
            comp=density.comp,
            mem=tree.mem[order],
            one_line=one_line,
            visits=visits,
        ),
        prompt=int(requests.prompt.sum()),
        possible=tree.shared_tokens,
    )


def admission_order(windows: Sequence[OrderedWindow], kv_capacity: int, samples: Sequence[int]) -> Plan:
    """All requests of the windows, one window after the other, as if every estimate were exact.

    Args:
        windows: one at least.
        kv_capacity: KV tokens.
        samples: slots that go first.
    """
    slots, sides, steps = [], [], []
    begin = 0.0
    for window in windows:
        one = scan_to_the_end(window.scan, kv_capacity)
        slots.append(one[0])
        sides.append(one[1])
        steps.append(begin + one[2])
        begin = float(steps[-1][-1]) if len(one[0]) else begin
    every = np.concatenate(slots)
    first = np.argsort(~np.isin(every, np.array(samples, np.int64)), kind="stable")
    comp = sum(float(window.scan.comp.sum()) for window in windows)
    mem = sum(float(window.scan.mem.sum()) for window in windows)
    return Plan(
        slots=every[first],
        sides=np.concatenate(sides)[first],
        steps=np.concatenate(steps)[first],
        density=float(densities(comp, mem)),
        shared_tokens=sum(window.density.shared_tokens for window in windows),
        possible_tokens=sum(window.possible for window in windows),
        splits=sum(window.density.splits for window in windows),
    )
