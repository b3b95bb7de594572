"""Admission counts KV that requests share once, and computes a shared prefix once (paper A.2).

Both answers work on any tree core; on the annotated one they are exact.
"""

from __future__ import annotations

from collections.abc import Hashable

from sglang.srt.blend.core.step.leaders import PrefixKeys
from sglang.srt.blend.runtime.radix.tree_core import AnnotatedTreeCore
from sglang.srt.blend.runtime.request import Request, TreeCache
from sglang.srt.session.streaming_session import is_virtual_node

WORTH_WAITING_TOKENS = 32
"""Tokens that a request must share with a leader to be held back: computing fewer costs less than the
step's delay (upstream's in-batch prefix check uses the same number). Where another request takes the
place in the step there is no delay, and one token is worth waiting for."""


def held_tokens(tree_cache: TreeCache, req: Request) -> int:
    """Tokens of the request's matched prefix that running requests hold already.

    They cost no further KV, so admission leaves them out when it fills M_L or M_R. A matched prefix
    that nobody holds is different: the request's admission takes those tokens out of the evictable
    pool. Call after ``req.init_next_round_input(tree_cache)``. On a tree core without annotations
    the whole matched prefix counts as held: off by one copy per prefix, not by one per request.
    """
    core = getattr(tree_cache, "tree_core", None)
    if isinstance(core, AnnotatedTreeCore) and not is_virtual_node(req.last_node):
        return core.held_tokens(req.last_node)
    return req.prefix_len


def uncached_prefix_key(
    tree_cache: TreeCache, req: Request, worth: int = WORTH_WAITING_TOKENS
) -> Hashable | None:
    """A key that is equal for requests that would compute the same tokens; None if none is worth waiting for.

    Two requests are duplicates when they match up to the same cached node and continue with the
    same tokens. Call after ``req.init_next_round_input(tree_cache)``.

    Args:
        worth: tokens that must be the same, rounded up to whole pages.
    """
    if not tree_cache.supports_prefix_sharing() or req.positional_embed_overrides is not None:
        return None
    page = tree_cache.page_size
    length = -(-worth // page) * page
    start = req.prefix_len
    tokens = req.full_untruncated_fill_ids
    if start + length >= len(tokens):  # the last token is always computed, cached or not
        return None
    return (req.last_node, req.extra_key, req.cache_salt, start, tuple(tokens[start : start + length]))


def prefix_keys(tree_cache: TreeCache, req: Request, *, paced: bool) -> PrefixKeys:
    """What a request would compute first: tokens that are worth a step's delay, and the fewest there are.

    Args:
        paced: prefill has a quota, so that somebody else may take the place of whoever waits.
    """
    return PrefixKeys(
        uncached_prefix_key(tree_cache, req), uncached_prefix_key(tree_cache, req, 1) if paced else None
    )
