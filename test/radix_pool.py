"""A radix cache with a real KV allocator and no model, and pending prompts to annotate it with.

``RequestPool`` does what a scheduler does to the tree (match, lock, allocate, insert, unlock, evict) for
requests that live in plain Python, so that every annotation can be recounted from scratch.
"""

from __future__ import annotations

import contextlib
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch

from models import TINY_LLAMA
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.core.pool.pending_index import NEVER
from sglang.srt.blend.runtime.radix import cache as radix_cache
from sglang.srt.blend.runtime.radix.annotations import Annotation
from sglang.srt.blend.runtime.radix.namespaces import Namespaces
from sglang.srt.blend.runtime.radix.tree_core import AnnotatedTreeCore
from sglang.srt.blend.runtime.token_ids import fold
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import get_context

COST = CostModel(ModelShape.from_config(TINY_LLAMA), load_hardware("a100-80gb"))
"""Lifetime costs on a tiny Llama."""

CacheKey = tuple[str | None, str | None]  # (extra_key, cache_salt)


@contextlib.contextmanager
def server_arguments(**fields: Any) -> Iterator[None]:
    """Published server arguments, as the scheduler process has them."""
    with get_context().override_server_args(**fields):
        yield


def make_cache(
    page_size: int = 1, kv_tokens: int = 1024, tree_core: str = radix_cache.BACKEND
) -> UnifiedRadixCache:
    """Upstream's cache on the named tree core, with an allocator for `kv_tokens` tokens and no storage."""
    radix_cache.register()
    common = {"dtype": torch.float16, "device": "cpu", "kvcache": mock.MagicMock(), "need_sort": False}
    if page_size == 1:
        allocator = TokenToKVPoolAllocator(kv_tokens, **common)
    else:
        allocator = PagedTokenToKVPoolAllocator(kv_tokens, page_size=page_size, **common)
    return UnifiedRadixCache(
        CacheInitParams(
            disable=False,
            req_to_token_pool=mock.MagicMock(),
            token_to_kv_pool_allocator=allocator,
            page_size=page_size,
            tree_components=(ComponentType.FULL,),
            tree_core_backend=tree_core,
        )
    )


@dataclass(eq=False)
class Request:
    """A request of the pool; `slot` is the planner's number for it."""

    tokens: tuple[int, ...]
    output: int
    key: CacheKey
    slot: int = -1
    hit: int = 0  # prompt tokens the cache served at the last start
    lock: Any = None
    own: torch.Tensor | None = None  # KV indices of the whole prompt, while running
    matched: int = 0  # tokens of `own` that belong to the tree


class RequestPool:
    """Waiting and running requests over one cache and one planner.

    Args:
        planner: ``core.planner.Planner``, attached to the cache by the caller.
        namespaces: the numbering the cache was attached with.
    """

    def __init__(self, cache: UnifiedRadixCache, planner: Planner, namespaces: Namespaces):
        self.cache = cache
        self.planner = planner
        self.namespaces = namespaces
        self.allocator = cache.token_to_kv_pool_allocator
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.plan_position: dict[int, int] = {}

    def add(self, requests: list[Request]) -> None:
        """New arrivals; the planner sorts them in at the next re-plan."""
        offsets = np.cumsum([0, *(len(r.tokens) for r in requests)]).astype(np.int64)
        slots = self.planner.add(
            np.concatenate([fold(r.tokens) for r in requests]),
            offsets,
            max_new_tokens=np.array([r.output for r in requests], dtype=np.int32),
            known_output=np.array([r.output for r in requests], dtype=np.int32),
            namespace=np.array([self.namespaces.intern(*r.key) for r in requests], dtype=np.int32),
        )
        for request, slot in zip(requests, slots.tolist(), strict=True):
            request.slot = slot
        self.waiting += requests

    def start(self, requests: list[Request]) -> list[Request]:
        """Admit and prefill one batch, as far as the KV pool has room; the requests that started.

        Like upstream's scheduler: match and lock each, evict once for all, then insert each.
        """
        cache, page = self.cache, self.cache.page_size
        started: list[tuple[Request, int]] = []
        wanted = 0
        for request in requests:
            match = self.match_result(request)
            request.lock = cache.lock(match.last_device_node)
            request.matched = match.device_prefix_len
            need = -(-len(request.tokens) // page) * page - match.device_prefix_len
            room = self.allocator.available_size() + cache.tree_core.evictable_size()
            if wanted + need > room:
                cache.unlock(request.lock)
                break
            wanted += need
            started.append((request, need))
        assert self._make_room(wanted)
        for request, need in started:
            request.own = torch.cat([self._path(request), self.allocator.alloc(need)])
            request.hit = request.matched
        for request, _ in started:
            self.waiting.remove(request)
            self.running.append(request)
            self.planner.admit(request.slot, request.hit)
            self._insert(request, request.tokens, request.own)
        return [request for request, _ in started]

    def finish(self, request: Request, output: tuple[int, ...]) -> None:
        """The request answered `output`; prompt and answer stay in the cache as far as there is room."""
        extra = -(-(len(request.tokens) + len(output)) // self.cache.page_size) * self.cache.page_size
        extra -= len(request.own)
        if self._make_room(extra):
            own = torch.cat([request.own, self.allocator.alloc(extra)]) if extra else request.own
            request.own = own
            self._insert(request, request.tokens + output, own)
        self._release(request)
        self.planner.remove(request.slot)

    def retract(self, request: Request) -> None:
        """Take a running request's KV away; it waits again."""
        self._release(request)
        self.waiting.append(request)
        self.planner.retract(request.slot)

    def abort(self, request: Request) -> None:
        """Drop a waiting or running request."""
        if request in self.running:
            self._release(request)
        else:
            self.waiting.remove(request)
        self.planner.remove(request.slot)

    def match(self, request: Request) -> int:
        """Match without admitting, as every step does for requests it holds back; tokens found."""
        return self.match_result(request).device_prefix_len

    def match_result(self, request: Request) -> Any:
        """Upstream's ``MatchResult``; the last token is always left to compute."""
        tokens, (extra_key, cache_salt) = array("q", request.tokens), request.key
        key = RadixKey(tokens, extra_key, limit=len(tokens) - 1, cache_salt=cache_salt)
        return self.cache.match_prefix(MatchPrefixParams(key=key))

    def evict(self, tokens: int) -> int:
        return self.cache.evict(EvictParams(num_tokens=tokens)).num_tokens_evicted

    def flush(self) -> None:
        """Empty the cache; nothing may be running."""
        assert not self.running
        self.cache.reset()
        self.allocator.clear()

    def nodes(self) -> Iterator[tuple[Any, CacheKey, tuple[int, ...]]]:
        """Every cached node with its namespace and the tokens of its whole path."""
        stack = [(child, ()) for child in self.cache.tree_core.root_node.children.values()]
        while stack:
            node, above = stack.pop()
            path = above + tuple(node.key.raw_token_ids())
            yield node, (node.key.extra_key, node.key.cache_salt), path
            stack += [(child, path) for child in node.children.values()]

    def recount(self, node: Any, key: CacheKey, path: tuple[int, ...], cost_model: CostModel) -> Annotation:
        """The node's annotation by looking at every waiting request."""
        known = self.planner.ledger.index.rank  # arrivals count from the next refresh on
        users = [
            r for r in self.waiting if r.key == key and r.tokens[: len(path)] == path and known(r.slot) >= 0
        ]
        if not users:
            return Annotation(0, 0.0, 0.0, NEVER)
        spared = float(cost_model.prefix_comp(len(path)))
        saved = len(users) * (spared - float(cost_model.prefix_comp(len(path) - len(node.key))))
        comp = sum(float(cost_model.comp(len(r.tokens), r.output)) for r in users) - len(users) * spared
        mem = sum(float(cost_model.mem(len(r.tokens), r.output)) for r in users)
        return Annotation(
            len(users), saved, max(0.0, comp) / mem, min(self.plan_position[r.slot] for r in users)
        )

    def replan(self) -> None:
        """Plan anew. Later plan positions are recounted from this plan, as the index has them."""
        self.planner.replan()
        self.plan_position = dict.fromkeys((r.slot for r in self.waiting + self.running), NEVER - 1)
        self.plan_position.update((int(slot), position) for position, slot in enumerate(self.planner.order))

    def check_leaks(self) -> None:
        """Upstream's tree invariants and ours, and every KV token accounted for exactly once."""
        if not self.running:
            self.cache.sanity_check()
        core = self.cache.tree_core
        if isinstance(core, AnnotatedTreeCore):
            core._check()
        private = sum(len(r.own) - self._aligned(len(r.own)) for r in self.running)
        private += sum(self._aligned(len(r.own)) - len(self._path(r)) for r in self.running)
        total = self.allocator.available_size() + core.evictable_size() + core.protected_size() + private
        assert total == self.allocator.size, f"{total} of {self.allocator.size} KV tokens accounted for"

    def _aligned(self, tokens: int) -> int:
        return tokens // self.cache.page_size * self.cache.page_size

    def _path(self, request: Request) -> torch.Tensor:
        core = self.cache.tree_core
        return core.collect_full_device_indices(request.lock.node, core.root_node_handle())

    def _make_room(self, tokens: int) -> bool:
        if tokens > self.allocator.available_size():
            self.cache.evict(EvictParams(num_tokens=tokens - self.allocator.available_size()))
        return tokens <= self.allocator.available_size()

    def _insert(self, request: Request, tokens: tuple[int, ...], own: torch.Tensor) -> None:
        """Put a running request's KV into the tree and move its lock there, as upstream's checkpoint does."""
        length = self._aligned(len(tokens))
        key = RadixKey(array("q", tokens[:length]), request.key[0], cache_salt=request.key[1])
        result = self.cache.insert(
            InsertParams(key=key, value=own[:length].clone(), prev_prefix_len=request.matched)
        )
        lock = self.cache.lock(result.last_device_node)
        self.cache.unlock(request.lock)
        request.lock = lock
        path = self._path(request)
        request.own = torch.cat([path, own[length:]])
        request.matched = len(path)

    def _release(self, request: Request) -> None:
        self.allocator.free(request.own[request.matched :])
        self.cache.unlock(request.lock)
        self.running.remove(request)
        request.lock = request.own = None


SYSTEM = tuple(range(100, 160))


def make_pool(kv_tokens: int = 4000) -> RequestPool:
    """An annotated cache with its planner."""
    with server_arguments():
        cache = make_cache(kv_tokens=kv_tokens)
    planner, namespaces = Planner(COST, kv_capacity=kv_tokens), Namespaces()
    assert radix_cache.attach_planner(cache, planner, COST, namespaces)
    return RequestPool(cache, planner, namespaces)


def random_requests(seed: int) -> list[Request]:
    """Prompts of a small vocabulary, half of them behind a system prompt, in two namespaces."""
    rng = random.Random(seed)
    heads = [SYSTEM, SYSTEM[:30], ()]
    return [
        Request(
            rng.choice(heads) + tuple(rng.choices(range(3), k=rng.randint(1, 30))),
            rng.randint(1, 40),
            rng.choice([(None, None), ("lora", None)]),
        )
        for _ in range(150)
    ]


def run(pool: RequestPool, requests: list[Request]) -> None:
    """Start and finish these, as far as there is room."""
    for request in pool.start(requests):
        pool.finish(request, (7, 8))
