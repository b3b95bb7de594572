"""What admission asks of the tree: tokens counted once, prefixes computed once; and what eviction keeps."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest

from radix_pool import COST, Request, RequestPool, make_cache, server_arguments
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.runtime.radix import cache as radix_cache
from sglang.srt.blend.runtime.radix.namespaces import Namespaces
from sglang.srt.blend.runtime.radix.sharing import can_share, held_tokens

HEAD = tuple(range(100, 140))


def make_pool(page_size: int = 1, kv_tokens: int = 400, tree_core: str = radix_cache.BACKEND) -> RequestPool:
    with server_arguments():
        cache = make_cache(page_size, kv_tokens, tree_core)
    planner, namespaces = Planner(COST, kv_capacity=kv_tokens), Namespaces()
    radix_cache.attach_planner(cache, planner, COST, namespaces)
    return RequestPool(cache, planner, namespaces)


def plain(*tokens: int, output: int = 4) -> Request:
    return Request(tokens, output, (None, None))


def matched(pool: RequestPool, request: Request) -> SimpleNamespace:
    """The request as upstream's Req looks after init_next_round_input."""
    result = pool.match_result(request)
    return SimpleNamespace(
        prefix_len=result.device_prefix_len,
        last_node=result.last_device_node,
        full_untruncated_fill_ids=array("q", request.tokens),
        extra_key=request.key[0],
        cache_salt=request.key[1],
        positional_embed_overrides=None,
    )


def test_held_tokens_counts_what_running_requests_lock_and_nothing_else() -> None:
    pool = make_pool()
    first, second, third = plain(*HEAD, 1, 2), plain(*HEAD, 3, 4), plain(*HEAD, 1, 2, 5)
    pool.add([first, second, third])
    pool.start([first])
    assert held_tokens(pool.cache, matched(pool, third)) == len(HEAD) + 2
    assert held_tokens(pool.cache, matched(pool, second)) == len(HEAD)
    pool.finish(first, (7, 8))
    assert held_tokens(pool.cache, matched(pool, third)) == 0  # cached still, but evictable
    pool.start([second])
    assert held_tokens(pool.cache, matched(pool, third)) == len(HEAD)


def test_held_tokens_on_another_tree_core_is_the_matched_prefix() -> None:
    pool = make_pool(tree_core="rust")
    first, second = plain(*HEAD, 1, 2), plain(*HEAD, 3, 4)
    pool.add([first, second])
    pool.start([first])
    assert held_tokens(pool.cache, matched(pool, second)) == len(HEAD)


def test_what_others_compute_is_of_no_use_without_a_cache_or_with_embeddings_of_ones_own() -> None:
    pool = make_pool()
    request = matched(pool, plain(*HEAD))
    assert can_share(pool.cache, request)
    request.positional_embed_overrides = object()
    assert not can_share(pool.cache, request)


@pytest.mark.parametrize("page_size", [1, 4])
def test_eviction_cuts_off_the_dead_end_of_a_leaf_and_keeps_what_is_needed(page_size: int) -> None:
    pool = make_pool(page_size)
    first, second = plain(*HEAD, *range(40)), plain(*HEAD, *range(200, 220))
    pool.add([first, second])
    pool.replan()
    pool.start([first])
    pool.finish(first, ())
    assert pool.evict(1) == 40  # one leaf held all 80 tokens; half of them are second's
    assert pool.match(second) == len(HEAD)
    pool.check_leaks()


def test_dead_prefixes_go_before_needed_ones_however_recently_used() -> None:
    pool = make_pool()
    needed, dead = plain(*HEAD, 1), plain(*range(300, 340), 2)
    later = plain(*HEAD, 5)
    pool.add([needed, dead, later])
    pool.replan()
    for request in (needed, dead):  # `needed` is the least recently used
        pool.start([request])
        pool.finish(request, ())
    pool.evict(1)
    assert pool.match(later) == len(HEAD)
    pool.evict(20)
    assert pool.match(later) == len(HEAD)
    assert pool.match(plain(*range(300, 340), 3)) == 0


def test_image_tokens_beyond_32_bits_are_annotated() -> None:
    pool = make_pool()
    image = (2**40 + 12345,) * 20
    first, second, other = plain(7, *image, 1), plain(7, *image, 2), plain(7, *(2**40 + 99,) * 20, 3)
    pool.add([first, second, other])
    pool.replan()
    pool.start([first])
    found = {
        path: pool.cache.tree_core.annotation(node.id).requests for node, _, path in pool.nodes() if path
    }
    assert found == {first.tokens: 0}
    assert pool.match(second) == 21
    found = {path: pool.cache.tree_core.annotation(node.id).requests for node, _, path in pool.nodes()}
    assert found == {first.tokens: 0, (7, *image): 1}
