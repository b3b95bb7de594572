"""What must exist in the installed SGLang, and how its absence stops a blend server at start-up.

Upstream logs and swallows whatever goes wrong while plugins are loaded and hooks applied. So nothing is
enforced there: the two hooks that every start passes (``ServerArgs.resolve_once`` in the launching
process, ``Scheduler.init_model_config`` and ``init_schedule_policy`` in each scheduler) call `require`
when the policy is blend. Servers with another policy never get here.
"""

from __future__ import annotations

import ast
import functools
import inspect
import logging
import pkgutil
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from sglang.srt.blend.runtime import versions

logger = logging.getLogger(__name__)

OURS = (
    "sglang.srt.blend",
    "sglang.srt.hardware_backend.portable_cpu",
    "sglang.srt.hardware_backend.simulated_gpu",
    "sglang.batch",
)
"""Packages below `sglang` that are this distribution's."""

# Methods that the runtime overrides or calls on upstream's objects, with the parameters it needs. What it
# imports is not listed: `imported_symbols` reads that from the source.
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
        ("req", "total_tokens"),
    ),
    (
        "sglang.srt.managers.schedule_policy.PrefillAdder._update_prefill_budget",
        ("prefix_len", "extend_input_len", "max_new_tokens"),
    ),
    (
        "sglang.srt.managers.schedule_policy.PrefillAdder._get_running_request_total_token_offset",
        ("req",),
    ),
    ("sglang.srt.mem_cache.prefill_budget.PrefillBudget.reserve", ("extend_input_len", "max_new_tokens")),
    ("sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator.create_prefill_budget", ("tree_cache",)),
    ("sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.evictable_size", ()),
)


class UnsupportedSGLang(RuntimeError):
    """The installed SGLang lacks something that the blend policy needs."""


def problems(
    hook_targets: Iterable[str], required: Iterable[tuple[str, tuple[str, ...]]] | None = None
) -> list[str]:
    """Every symbol that is missing or has lost a parameter, one line each; imports their modules.

    What belongs to a missing one is missing, too, and not named.

    Args:
        required: symbols with parameters; None for all that the blend policy needs.
    """
    needed: dict[str, tuple[str, ...]] = dict.fromkeys(hook_targets, ())
    needed |= dict(_all_of_the_policy() if required is None else required)
    found: list[str] = []
    missing: list[str] = []
    for symbol, parameters in sorted(needed.items()):  # owners come before what belongs to them
        try:
            target = pkgutil.resolve_name(symbol)
        except (ImportError, AttributeError):
            if not any(symbol.startswith(f"{owner}.") for owner in missing):
                missing.append(symbol)
                found.append(f"{symbol} does not exist")
            continue
        lost = [name for name in parameters if name not in inspect.signature(target).parameters]
        if lost:
            found.append(f"{symbol} has no parameter {', '.join(lost)}")
    return found


def _all_of_the_policy() -> dict[str, tuple[str, ...]]:
    imported: dict[str, tuple[str, ...]] = dict.fromkeys(imported_symbols("sglang.srt.blend"), ())
    return imported | dict(REQUIRED)


@functools.cache
def imported_symbols(package: str) -> tuple[str, ...]:
    """Dotted names that a package of ours imports from upstream, those inside functions included.

    Left out is what only type checkers import, and what a module can do without (`try` with `except
    ImportError`).
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for folder in folders or () for file in Path(folder).rglob("*.py"))
    found = (symbol for file in files for symbol in _imports(ast.parse(file.read_text())))
    return tuple(sorted({symbol for symbol in found if not symbol.startswith(OURS)}))


def _imports(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang."):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
        return
    optional = isinstance(node, ast.Try) and any(
        isinstance(handler.type, ast.Name) and handler.type.id == "ImportError" for handler in node.handlers
    )
    for_checkers = (
        isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    if not optional and not for_checkers:
        for child in ast.iter_child_nodes(node):
            yield from _imports(child)


def require(found: Iterable[str]) -> None:
    """Refuse to start on an SGLang that lacks something; warn of one that was not tested.

    Raises:
        UnsupportedSGLang: naming each problem and the remedy.
    """
    found = list(found)
    if found:
        raise UnsupportedSGLang(
            f"--schedule-policy blend cannot run on the installed SGLang {metadata.version('sglang')}: "
            f"{'; '.join(found)}. Install an SGLang that sglang-blend is tested with "
            f'(pip install "{versions.required_sglang()}"), or choose another --schedule-policy.'
        )
    _warn_of(versions.outside_range())


@functools.cache
def _warn_of(untested: str) -> None:
    if untested:
        logger.warning("%s. Everything that the blend policy needs was found, so it starts.", untested)
