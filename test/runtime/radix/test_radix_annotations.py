"""Annotations of cached nodes stay exact through everything that happens to the tree and to the plan."""

from __future__ import annotations

import random

import pytest

from radix_pool import COST, Request, RequestPool, make_cache, server_arguments
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.runtime.radix import cache as radix_cache
from sglang.srt.blend.runtime.radix.namespaces import Namespaces

KEYS = [(None, None), (None, None), ("lora", None), (None, "salt"), ("lora", "salt")]


def random_prompt(rng: random.Random, known: list[tuple[int, ...]]) -> tuple[int, ...]:
    """A new prompt, often continuing or repeating the beginning of an earlier one."""
    head: tuple[int, ...] = ()
    if known and rng.random() < 0.8:
        head = rng.choice(known)
        head = head[: rng.randint(0, len(head))]
    return head + tuple(rng.choices(range(3), k=rng.randint(0 if head else 1, 24)))


def same(found, expected) -> bool:
    return (
        found.requests == expected.requests
        and found.next_use == expected.next_use
        and found.saved_comp == pytest.approx(expected.saved_comp, rel=1e-9, abs=1e-18)
        and found.density == pytest.approx(expected.density, rel=1e-6, abs=1e-12)
    )


def eviction_keys(pool: RequestPool, cost_model):
    """Every evictable leaf with the key that orders evictions, recounted: smallest goes first."""
    leaves = pool.cache.tree_core.evictable_device_leaves
    for node, key, path in pool.nodes():
        if node in leaves:
            use = pool.recount(node, key, path, cost_model).next_use
            yield node, (-use, node.last_access_time, node.id)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("page_size", [1, 4])
def test_annotations_equal_a_recount_after_every_kind_of_change(page_size: int, seed: int) -> None:
    rng = random.Random(f"{page_size}/{seed}")
    with server_arguments():
        cache = make_cache(page_size, kv_tokens=320)
        planner, namespaces = Planner(COST, kv_capacity=320, seed=seed), Namespaces()
        assert radix_cache.attach_planner(cache, planner, COST, namespaces)
        pool = RequestPool(cache, planner, namespaces)
        known: list[tuple[int, ...]] = []
        compared, evicted = 0, 0
        core, evict_leaf = cache.tree_core, cache.tree_core.evict_device_leaf

        def evict_checked(node_id: int, is_write_back: bool):
            nonlocal evicted
            keys = {node.id: key for node, key in eviction_keys(pool, COST)}
            assert keys[node_id] == min(keys.values()), (keys[node_id], sorted(keys.values())[:3])
            evicted += 1
            return evict_leaf(node_id, is_write_back)

        core.evict_device_leaf = evict_checked

        def arrive() -> None:
            new = [
                Request(random_prompt(rng, known), rng.randint(1, 40), rng.choice(KEYS))
                for _ in range(rng.randint(1, 6))
            ]
            known.extend(r.tokens for r in new)
            pool.add(new)

        def finish() -> None:
            request = rng.choice(pool.running)
            pool.finish(request, tuple(rng.choices(range(3), k=rng.randint(1, 12))))

        for step in range(400):
            roll = rng.random()
            if roll < 0.12 and len(pool.waiting) < 60:
                arrive()
            elif roll < 0.20:
                pool.replan()
            elif roll < 0.50 and pool.waiting:
                pool.start(rng.sample(pool.waiting, min(len(pool.waiting), rng.randint(1, 4))))
            elif roll < 0.72 and pool.running:
                finish()
            elif roll < 0.77 and pool.running:
                pool.retract(rng.choice(pool.running))
            elif roll < 0.83 and pool.waiting:
                pool.abort(rng.choice(pool.waiting + pool.running))
            elif roll < 0.90 and pool.waiting:
                pool.match(rng.choice(pool.waiting))
            elif roll < 0.98:
                pool.evict(rng.randint(1, 60))
            elif not pool.running:
                pool.flush()
            pool.check_leaks()
            for node, key, path in pool.nodes():
                found = cache.tree_core.annotation(node.id)
                expected = pool.recount(node, key, path, COST)
                assert same(found, expected), (step, found, expected, path)
                compared += found.requests > 0
        while pool.running:
            finish()
        pool.check_leaks()
        assert compared > 300
        assert evicted > 50
