"""What a planner sees of the cache: how much of each waiting prompt is there, held or not."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import pytest

from radix_pool import Request, RequestPool, make_pool, random_requests, run


def cached(pool: RequestPool, least: int) -> dict[int, int]:
    """By slot of a waiting request: tokens in the cache that the tree tells of."""
    order = pool.planner.pool.prompts.slots
    tokens = np.zeros(len(order), np.int64)
    for lo, hi, known in pool.cache.tree_core.cached_prefixes(least):
        assert lo < hi
        assert known >= least
        tokens[lo:hi] = known
    return {slot: int(n) for slot, n in zip(order.tolist(), tokens, strict=True)}


def recounted(pool: RequestPool, request: Request) -> int:
    """Tokens that a request shares with the most similar path of the cache."""
    paths = [zip(path, request.tokens, strict=False) for _, key, path in pool.nodes() if key == request.key]
    return max((len(list(takewhile(lambda pair: pair[0] == pair[1], path))) for path in paths), default=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("least", [1, 25])
def test_no_more_is_told_than_there_is_and_the_longest_is(seed: int, least: int) -> None:
    pool = make_pool()
    requests = random_requests(seed)
    pool.add(requests)
    pool.replan()
    run(pool, requests[:50])
    pool.add(random_requests(seed + 100)[:20])
    pool.replan()
    told = cached(pool, least)
    truth = {request.slot: recounted(pool, request) for request in pool.waiting}
    assert all(told[slot] <= tokens for slot, tokens in truth.items())
    longest = max(truth, key=lambda slot: truth[slot])
    assert told[longest] == truth[longest] >= 30
    exact = [told[slot] == tokens for slot, tokens in truth.items() if tokens >= least]
    assert sum(exact) > 0.6 * len(exact)


def documents(readers: int) -> list[Request]:
    """Two documents of 200 tokens, and what each reader asks; the readers of both take turns."""
    texts = [tuple(range(1000 * (n + 1), 1000 * (n + 1) + 200)) for n in range(2)]
    return [Request((*texts[i % 2], 7 + i, 8, 9), 1, (None, None)) for i in range(2 * readers)]


def test_a_document_that_one_reader_has_left_is_seen_by_the_others() -> None:
    """The cache holds it in one piece with that reader's question and answer."""
    pool = make_pool()
    requests = documents(3)
    pool.add(requests)
    pool.replan()
    run(pool, requests[:1])
    told = cached(pool, least=100)
    assert [told[request.slot] for request in requests[1:]] == [0, 200, 0, 200, 0]
    assert not any(cached(pool, least=201).values())


@pytest.mark.parametrize("sees", [True, False])
def test_in_a_stream_what_is_cached_goes_on_before_what_more_wait_for(sees: bool) -> None:
    pool = make_pool()
    one_document = documents(3)[::2]
    pool.add(one_document)
    pool.replan()
    run(pool, one_document[:1])  # nobody holds the document any more
    pool.add([Request((5, 6, 7), 90, (None, None))])
    pool.replan()
    pool.start(pool.waiting[-1:])
    pool.add(documents(4)[1::2])  # the other one, of which more are waiting
    if not sees:
        pool.planner.sees_cache(lambda least: ())
    pool.replan()
    slots = {request.slot for request in one_document[1:]}
    assert (int(pool.planner.order[0]) in slots) == sees
