"""The cached prefixes that a user is shown are those that spare the waiting requests most."""

from __future__ import annotations

from typing import Any

import pytest

from radix_pool import COST, SYSTEM, Request, RequestPool, make_pool, random_requests, run
from sglang.srt.blend.core.pool.request_table import UNPLANNED
from sglang.srt.blend.runtime.radix.heaviest import COUNT, CachedPrefix, heaviest_prefixes


def needed_prefixes(pool: RequestPool) -> list[CachedPrefix]:
    """Every cached prefix that somebody waits for, recounted, the heaviest first."""
    found = []
    for node, key, path in pool.nodes():
        needed = pool.recount(node, key, path, COST)
        if needed.requests:
            found.append(
                CachedPrefix(
                    tokens=len(path),
                    own_tokens=len(node.key),
                    requests=needed.requests,
                    saved_seconds=needed.saved_comp,
                    next_use=needed.next_use if needed.next_use < UNPLANNED else None,
                    density=needed.density,
                )
            )
    return sorted(found, key=lambda prefix: -prefix.saved_seconds)


def rounded(prefixes: list[CachedPrefix]) -> list[tuple[Any, ...]]:
    """Comparable although sums of floats differ in their last digits and ties may stand in any order."""
    return sorted(
        (f"{p.saved_seconds:.6e}", p.tokens, p.own_tokens, p.requests, p.next_use or -1, f"{p.density:.4e}")
        for p in prefixes
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_prefixes_shown_are_the_heaviest_of_a_recount(seed: int) -> None:
    pool = make_pool()
    requests = random_requests(seed)
    pool.add(requests)
    pool.replan()
    run(pool, requests[:50])
    pool.add(random_requests(seed + 100)[:20])  # not planned yet
    expected = needed_prefixes(pool)
    assert len(expected) > COUNT
    shown = heaviest_prefixes(pool.cache.tree_core)
    assert [p.saved_seconds for p in shown] == pytest.approx([p.saved_seconds for p in expected[:COUNT]])
    every = heaviest_prefixes(pool.cache.tree_core, count=len(expected) + 1)
    assert rounded(every) == rounded(expected)


def test_a_look_is_short_however_many_nodes_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool()
    requests = random_requests(0)
    pool.add(requests)
    pool.replan()
    run(pool, requests[:50])
    core, looks = pool.cache.tree_core, []
    annotation = core.annotation
    monkeypatch.setattr(core, "annotation", lambda node: looks.append(node) or annotation(node))
    assert len(list(pool.nodes())) > 40
    shown = heaviest_prefixes(core, max_visits=10)
    assert len(looks) == len(set(looks)) == 10
    assert shown


def test_prefixes_that_arrivals_need_have_no_position_before_the_next_plan() -> None:
    pool = make_pool()
    first, second = (Request((*SYSTEM, token), 4, (None, None)) for token in (1, 2))
    pool.add([first])
    pool.replan()
    run(pool, [first])
    pool.add([second])
    pool.planner.refresh()
    pool.match(second)
    (shown,) = heaviest_prefixes(pool.cache.tree_core)
    assert (shown.tokens, shown.own_tokens, shown.requests, shown.next_use) == (60, 60, 1, None)
    pool.replan()
    assert heaviest_prefixes(pool.cache.tree_core)[0].next_use == 0


def test_nothing_is_shown_of_a_cache_that_nobody_waits_for() -> None:
    pool = make_pool()
    requests = random_requests(0)[:20]
    pool.add(requests)
    pool.replan()
    run(pool, requests)
    assert len(list(pool.nodes())) > 10
    assert heaviest_prefixes(pool.cache.tree_core) == []
