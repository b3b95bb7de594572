"""Where the supported SGLang versions differ, and what this package does under each.

The range stands in pyproject.toml; `docs/versions.md` lists what differs in it. Each adapter looks for what
it needs instead of comparing version numbers, so it also holds for a build between two releases.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import metadata

import psutil
from packaging.requirements import Requirement

PACKAGE = "sglang-blend"


def required_sglang() -> Requirement:
    """The SGLang versions that this package is made for and tested with, from its own metadata."""
    wanted = (Requirement(text) for text in metadata.requires(PACKAGE) or ())
    return next(one for one in wanted if one.name == "sglang")


def outside_range() -> str:
    """What to say of an SGLang that this package was not tested with; "" of one that it was."""
    installed, wanted = metadata.version("sglang"), required_sglang()
    if wanted.specifier.contains(installed, prereleases=True):
        return ""
    return f"SGLang {installed} is none that sglang-blend is tested with ({wanted.specifier})"


# ---------------------------------------------------------------- adapters

ADAPTERS: Mapping[str, str] = {
    "sglang.srt.utils.common.get_free_cpu_memory": "memory is the machine's, whatever a container's limit",
}
"""Symbols that not every supported SGLang has, and what is done where one is missing."""


def adapted() -> list[str]:
    """What is done otherwise because the installed SGLang lacks a symbol, one line each."""
    return [f"no {symbol}: {instead}" for symbol, instead in ADAPTERS.items() if not _exists(symbol)]


def memory_limit() -> int | None:
    """Bytes that this process's container may use; None without a limit, or where SGLang does not look."""
    try:
        from sglang.srt.utils.common import get_instance_memory_status
    except ImportError:
        return None
    limit: int | None = get_instance_memory_status("/sys/fs/cgroup/memory.max")
    return limit


def free_memory() -> int:
    """Bytes of memory that SGLang counts as free on a CPU."""
    try:
        from sglang.srt.utils.common import get_free_cpu_memory
    except ImportError:
        return int(psutil.virtual_memory().available)
    return int(get_free_cpu_memory())


def _exists(symbol: str) -> bool:
    try:
        pkgutil.resolve_name(symbol)
    except (ImportError, AttributeError):
        return False
    return True
