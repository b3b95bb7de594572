"""Admission counts KV that requests share once, and computes a shared prefix once (paper A.2).

Both answers work on any tree core; on the annotated one they are exact.
"""

from __future__ import annotations

from sglang.srt.blend.runtime.radix.tree_core import AnnotatedTreeCore
from sglang.srt.blend.runtime.request import Request, TreeCache
from sglang.srt.session.streaming_session import is_virtual_node


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


def can_share(tree_cache: TreeCache, req: Request) -> bool:
    """Whether a request can use KV that others compute, and they its own."""
    return tree_cache.supports_prefix_sharing() and req.positional_embed_overrides is None
