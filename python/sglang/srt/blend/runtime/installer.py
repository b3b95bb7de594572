"""Puts hooks on upstream in place, and says what could not be. No other module touches the hook registry.

Every hook of ours stands, with its reason, in one of these tables:

* `sglang.srt.blend.runtime.plugin.HOOKS`: the scheduler's.
* `sglang.srt.blend.runtime.plugin.CONTROLLER_HOOKS`: the data-parallel controller's.
* `sglang.srt.hardware_backend.portable_cpu.hooks.HOOKS`: the portable CPU's; `decoder_hooks` adds those on
  the decoders of a loaded model.
* `sglang.srt.hardware_backend.simulated_gpu.hooks.HOOKS`: the simulated GPU's.
* `benchmark.offline.scheduler_hooks.hooks`: what a measured engine's scheduler gets.

Upstream's registry patches a target once, and only logs what it could not patch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

__all__ = ["Hook", "HookType", "apply", "imported", "install", "register", "targets", "unapplied"]


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook on upstream.

    Attributes:
        target: dotted name of the upstream function or method.
        function: what runs before, after, around or instead of it, with the arguments that upstream's
            `HookType` says.
        reason: why upstream has to be touched here.
        module: that must have been imported before the hook goes in; "" imports what the target needs.
    """

    target: str
    function: Callable[..., Any]
    kind: HookType
    reason: str
    module: str = ""


_registered: dict[str, list[Hook]] = {}
"""Our hooks that upstream's registry has, by target."""

_taken: set[str] = set()
"""Targets that somebody else had patched before we could register."""


def targets(hooks: Iterable[Hook]) -> tuple[str, ...]:
    """Each target once, in the order of the table."""
    return tuple(dict.fromkeys(hook.target for hook in hooks))


def register(hooks: Iterable[Hook]) -> bool:
    """Hand over the hooks whose modules have been imported; whether any of them is new.

    They take effect when upstream's `load_plugins` has run or `apply` is called. The hooks of a table on one
    target go in together. Harmless when repeated.
    """
    hooks, new = tuple(hooks), False
    for target in targets(hooks):
        on_target = [hook for hook in hooks if hook.target == target]
        missing = [hook for hook in on_target if hook not in _registered.get(target, ())]
        if target in _taken or not missing or not all(imported(hook.module) for hook in on_target):
            continue
        if target in HookRegistry._patched:
            if target not in _registered:
                _taken.add(target)
                continue
            _reopen(target)
        for hook in missing:
            HookRegistry.register(hook.target, hook.function, hook.kind)
        _registered.setdefault(target, []).extend(missing)
        new = True
    return new


def apply() -> None:
    """Put what is registered in place."""
    HookRegistry.apply_hooks()


def unapplied(hooks: Iterable[Hook]) -> list[str]:
    """What is wrong with these hooks in this process, one line for each target."""
    hooks = tuple(hooks)
    found = [
        f"{target} had been patched by another plugin before"
        for target in sorted(_taken.intersection(targets(hooks)))
    ]
    return found + [f"the hook on {target} was not applied" for target in _absent(hooks)]


def install(hooks: Iterable[Hook], failure: str) -> None:
    """Put hooks in place now.

    Args:
        failure: the error's text, with {target} where the name of an upstream symbol belongs.

    Raises:
        RuntimeError: for the first hook that is not in place.
    """
    hooks = tuple(hooks)
    if register(hooks):
        apply()
    for target in targets(hooks):
        if target in _taken:
            raise RuntimeError(f"{failure.format(target=target)}; another plugin had patched it before")
    for target in _absent(hooks):
        raise RuntimeError(failure.format(target=target))


def imported(module: str) -> bool:
    """Whether a module has been imported to its end; true of ""."""
    loaded = sys.modules.get(module) if module else sys
    return loaded is not None and not getattr(loaded.__spec__, "_initializing", False)


def _absent(hooks: tuple[Hook, ...]) -> list[str]:
    in_place = {
        hook for target, ours in _registered.items() if target in HookRegistry._patched for hook in ours
    }
    return list(targets(hook for hook in hooks if hook not in in_place and hook.target not in _taken))


def _reopen(target: str) -> None:
    """Let a target that has hooks of ours take more: those registered from here on go around it as it is."""
    HookRegistry._hooks.pop(target, None)
    HookRegistry._patched.discard(target)
