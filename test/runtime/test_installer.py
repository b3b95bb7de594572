"""Tables of hooks on a module that stands for upstream's."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from sglang.srt.blend.runtime import installer
from sglang.srt.blend.runtime.installer import Hook, HookType
from sglang.srt.plugins.hook_registry import HookRegistry

FAILURE = "this upstream has no {target}"


@pytest.fixture
def upstream(request, monkeypatch) -> ModuleType:
    """A module of its own for every test: hooks stay."""
    module = ModuleType(f"upstream_of_{request.node.name}")
    module.double = lambda number: 2 * number
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def add(upstream: ModuleType, number: int, **fields: str) -> tuple[Hook, ...]:
    hook = Hook(
        f"{upstream.__name__}.double", lambda result, _: result + number, HookType.AFTER, "test", **fields
    )
    return (hook,)


def test_two_tables_with_hooks_on_one_target_both_take_effect(upstream):
    first, second = add(upstream, 1), add(upstream, 10)
    installer.install(first, FAILURE)
    installer.install(second, FAILURE)
    assert upstream.double(3) == 17
    assert installer.unapplied(first + second) == []


def test_a_table_that_is_installed_twice_takes_effect_once(upstream):
    table = add(upstream, 1)
    installer.install(table, FAILURE)
    installer.install(table, FAILURE)
    assert upstream.double(3) == 7


def test_a_hook_waits_for_its_module(upstream, monkeypatch):
    table = add(upstream, 1, module="upstream_that_comes_later")
    assert not installer.register(table)
    assert len(installer.unapplied(table)) == 1
    monkeypatch.setitem(sys.modules, "upstream_that_comes_later", upstream)
    monkeypatch.setattr(upstream, "__spec__", ModuleType("spec"))
    assert installer.register(table)
    installer.apply()
    assert upstream.double(3) == 7


def test_a_target_that_is_missing_is_named(upstream):
    del upstream.double
    with pytest.raises(RuntimeError, match=rf"has no {upstream.__name__}\.double$"):
        installer.install(add(upstream, 1), FAILURE)


def test_a_target_that_somebody_else_has_patched_is_refused(upstream):
    HookRegistry.register(f"{upstream.__name__}.double", lambda result, _: None, HookType.AFTER)
    HookRegistry.apply_hooks()
    table = add(upstream, 1)
    with pytest.raises(RuntimeError, match="another plugin had patched it before"):
        installer.install(table, FAILURE)
    assert installer.unapplied(table) == [
        f"{upstream.__name__}.double had been patched by another plugin before"
    ]
