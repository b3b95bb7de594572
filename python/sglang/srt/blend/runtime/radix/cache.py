"""A blend server gets RadixAttention with resource annotations wherever its cache can carry them.

Upstream's registries do the work: a tree core named ``blend`` (``register_tree_core_backend``) and a
radix-cache backend of the same name that selects it and otherwise builds upstream's default cache.
Caches that cannot be annotated stay exactly as upstream builds them, and the log says why.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.planner import Planner
from sglang.srt.blend.runtime.radix.annotations import PlannerView
from sglang.srt.blend.runtime.radix.namespaces import Namespaces
from sglang.srt.blend.runtime.radix.tree_core import AnnotatedTreeCore
from sglang.srt.blend.runtime.request import TreeCache
from sglang.srt.environ import envs
from sglang.srt.mem_cache.registry import (
    TreeCacheBuildContext,
    default_radix_cache_factory,
    register_radix_cache_backend,
    registered_radix_cache_backends,
)
from sglang.srt.mem_cache.unified_cache.tree_core_registry import (
    register_tree_core_backend,
    registered_tree_core_backends,
)
from sglang.srt.runtime_context import get_context, get_disagg, get_memory, get_parallel

if TYPE_CHECKING:
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.unified_cache.components import ComponentType, TreeComponent

logger = logging.getLogger(__name__)

BACKEND = "blend"
"""The name in both of upstream's registries; ``--radix-cache-backend`` accepts it, too."""


def register() -> None:
    """Make both names known to upstream; harmless when called again."""
    if BACKEND not in registered_tree_core_backends():
        register_tree_core_backend(BACKEND, _create_tree_core)
    if BACKEND not in registered_radix_cache_backends():
        register_radix_cache_backend(BACKEND, create_annotated_cache)


def install() -> None:
    """Let this process build the annotated cache, unless the user chose a radix-cache backend.

    Call when the schedule policy is blend, after the server arguments are published and before the
    scheduler builds its KV cache.
    """
    register()
    chosen = get_memory().radix_cache_backend
    if chosen is None:
        get_context().override("sglang-blend", radix_cache_backend=BACKEND)
    elif chosen != BACKEND:
        logger.info(
            "blend: --radix-cache-backend %s was chosen, so cached prefixes carry no annotations.", chosen
        )


def attach_planner(
    tree_cache: TreeCache, planner: Planner, cost_model: CostModel, namespaces: Namespaces
) -> bool:
    """Annotate the cache's nodes from this planner; False when the cache cannot be annotated.

    Args:
        planner: its prompts were added under the numbers of ``namespaces``.
        cost_model: gives the compute seconds that a cached prefix saves.
    """
    core = annotated_core(tree_cache)
    if core is None:
        return False
    core.attach(PlannerView(planner, cost_model, namespaces))
    planner.sees_cache(core.cached_prefixes)
    return True


def annotated_core(tree_cache: TreeCache) -> AnnotatedTreeCore | None:
    """The cache's tree core if its nodes carry annotations, or None."""
    core = getattr(tree_cache, "tree_core", None)
    return core if isinstance(core, AnnotatedTreeCore) else None


def create_annotated_cache(ctx: TreeCacheBuildContext) -> BasePrefixCache:
    """Upstream's default cache, on the annotated tree core where that is possible; a factory for upstream."""
    reason = why_not_annotated(ctx)
    if reason is not None:
        logger.info("blend: cached prefixes carry no annotations: %s. Upstream's cache is used.", reason)
    else:
        ctx.params.tree_core_backend = BACKEND
        if _user_chose_eviction():
            logger.info(
                "blend: --radix-eviction-policy %s was chosen and decides evictions; the plan does not.",
                ctx.params.eviction_policy,
            )
    return default_radix_cache_factory(ctx)


def why_not_annotated(ctx: TreeCacheBuildContext) -> str | None:
    """What keeps the nodes of this cache from being annotated, in words; None if nothing does."""
    memory, params = get_memory(), ctx.params
    reasons = (
        (ctx.disable_radix_cache, "the radix cache is disabled"),
        (ctx.is_hybrid_swa, "sliding-window layers keep their KV by their own LRU"),
        (ctx.is_hybrid_ssm, "recurrent (Mamba) states are kept by their own LRU"),
        (ctx.enable_hierarchical_cache, "--enable-hierarchical-cache moves evicted KV to the host"),
        (
            get_disagg().disaggregation_decode_retraction_backup == "host_pool",
            "retracted requests are backed up in a host pool",
        ),
        (memory.enable_lmcache, "--enable-lmcache owns the cache"),
        (memory.enable_flexkv, "--enable-flexkv owns the cache"),
        (
            memory.enable_unified_cache_external_linker,
            "--enable-unified-cache-external-linker moves KV to an external store",
        ),
        (params.is_eagle, "EAGLE keys the tree by bigrams of tokens"),
        (hasattr(params.req_to_token_pool, "req_to_c128_sidecar"), "the NPU's C128 sidecar is in use"),
        (
            get_parallel().enable_kv_cache_sharding,
            "--enable-kv-cache-sharding prescribes upstream's tree core",
        ),
        (
            params.enable_session_radix_cache,
            "--enable-session-radix-cache orders evictions by session references",
        ),
        (
            envs.SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND.is_set()
            and envs.SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND.get() != BACKEND,
            "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND chooses another tree core",
        ),
    )
    return next((why for applies, why in reasons if applies), None)


def _user_chose_eviction() -> bool:
    memory = get_memory()
    return bool(memory._radix_eviction_policy_explicitly_set or memory.radix_eviction_policy != "lru")


def _create_tree_core(
    params: CacheInitParams, components: dict[ComponentType, TreeComponent]
) -> AnnotatedTreeCore:
    return AnnotatedTreeCore(params, components, plan_eviction=not _user_chose_eviction())
