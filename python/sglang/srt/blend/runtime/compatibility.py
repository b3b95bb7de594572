"""What must exist in the installed SGLang, and how its absence stops a blend server at start-up.

Upstream logs and swallows whatever goes wrong while plugins are loaded and hooks applied. So nothing is
enforced there: the two hooks that every start passes (``ServerArgs.resolve_once`` in the launching
process, ``Scheduler.init_model_config`` and ``init_schedule_policy`` in each scheduler) call `require`
when the policy is blend. Servers with another policy never get here.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable
from importlib.metadata import version

# Symbols beside the hooks' targets that the runtime builds on, with the parameters it passes or overrides.
REQUIRED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sglang.srt.managers.schedule_policy.SchedulePolicy.calc_priority", ("waiting_queue", "running_batch")),
    (
        "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req",
        ("req", "has_chunked_req", "truncation_align_size"),
    ),
    ("sglang.srt.managers.schedule_policy.PrefillAdder.add_chunked_req", ("req",)),
    ("sglang.srt.managers.schedule_policy.PrefillAdder.preempt_to_schedule", ("req",)),
    (
        "sglang.srt.managers.schedule_policy.PrefillAdder._check_prefill_budget",
        ("req", "extend_input_len", "total_tokens", "swa_host_hit_length", "chunk_limit"),
    ),
    (
        "sglang.srt.managers.schedule_policy.PrefillAdder._update_prefill_budget",
        ("prefix_len", "extend_input_len", "max_new_tokens"),
    ),
    (
        "sglang.srt.managers.schedule_policy.PrefillAdder._get_running_request_total_token_offset",
        ("req",),
    ),
    ("sglang.srt.managers.schedule_policy.CLIP_MAX_NEW_TOKENS", ()),
    ("sglang.srt.managers.schedule_policy.AddReqResult", ()),
    ("sglang.srt.mem_cache.prefill_budget.PrefillBudget.reserve", ("extend_input_len", "max_new_tokens")),
    ("sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator.create_prefill_budget", ("tree_cache",)),
    ("sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.evictable_size", ()),
    ("sglang.srt.mem_cache.registry.register_radix_cache_backend", ()),
    ("sglang.srt.mem_cache.registry.default_radix_cache_factory", ()),
    ("sglang.srt.mem_cache.unified_cache.tree_core_registry.register_tree_core_backend", ()),
    ("sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore", ()),
    ("sglang.srt.runtime_context.get_parallel", ()),
)


class UnsupportedSGLang(RuntimeError):
    """The installed SGLang lacks something that the blend policy needs."""


def problems(
    hook_targets: Iterable[str], required: Iterable[tuple[str, tuple[str, ...]]] = REQUIRED
) -> list[str]:
    """Every symbol that is missing or has lost a parameter, one line each; imports their modules."""
    found = []
    for symbol, parameters in [*((target, ()) for target in hook_targets), *required]:
        try:
            target = pkgutil.resolve_name(symbol)
        except (ImportError, AttributeError):
            found.append(f"{symbol} does not exist")
            continue
        lost = [name for name in parameters if name not in inspect.signature(target).parameters]
        if lost:
            found.append(f"{symbol} has no parameter {', '.join(lost)}")
    return found


def require(found: Iterable[str]) -> None:
    """Refuse to start.

    Raises:
        UnsupportedSGLang: naming each problem and the remedy.
    """
    found = list(found)
    if found:
        raise UnsupportedSGLang(
            f"--schedule-policy blend cannot run on the installed SGLang {version('sglang')}: "
            f"{'; '.join(found)}. Install the SGLang version that this sglang-blend is built for "
            "(pip install --upgrade sglang-blend), or choose another --schedule-policy."
        )
