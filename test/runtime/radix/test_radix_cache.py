"""Which cache a blend server gets: annotated, or upstream's with a line that says why."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from radix_pool import make_cache, server_arguments
from sglang.srt.blend.runtime.radix import cache as radix_cache
from sglang.srt.blend.runtime.radix.tree_core import AnnotatedTreeCore
from sglang.srt.mem_cache.registry import registered_radix_cache_backends
from sglang.srt.mem_cache.unified_cache.tree_core_registry import registered_tree_core_backends
from sglang.srt.runtime_context import get_memory


def context(**fields: Any) -> SimpleNamespace:
    """A TreeCacheBuildContext as far as the factory looks at it, for a model with nothing special."""
    params = SimpleNamespace(
        is_eagle=fields.pop("is_eagle", False),
        enable_session_radix_cache=fields.pop("enable_session_radix_cache", False),
        req_to_token_pool=fields.pop("req_to_token_pool", object()),
        tree_core_backend=None,
        eviction_policy=get_memory().radix_eviction_policy,
    )
    plain = {
        "disable_radix_cache": False,
        "is_hybrid_swa": False,
        "is_hybrid_ssm": False,
        "enable_hierarchical_cache": False,
    }
    return SimpleNamespace(params=params, **(plain | fields))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Contexts that reached upstream's default factory."""
    seen: list[Any] = []
    monkeypatch.setattr(radix_cache, "default_radix_cache_factory", seen.append)
    return seen


def test_registering_twice_is_harmless() -> None:
    radix_cache.register()
    radix_cache.register()
    assert registered_radix_cache_backends().count(radix_cache.BACKEND) == 1
    assert registered_tree_core_backends().count(radix_cache.BACKEND) == 1


def test_install_selects_the_annotated_cache_when_the_user_chose_none() -> None:
    with server_arguments():
        radix_cache.install()
        assert get_memory().radix_cache_backend == radix_cache.BACKEND


def test_install_leaves_the_users_backend_alone_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with server_arguments(radix_cache_backend="flexkv"), caplog.at_level(logging.INFO):
        radix_cache.install()
        assert get_memory().radix_cache_backend == "flexkv"
    assert "--radix-cache-backend flexkv" in caplog.text


def test_plain_attention_gets_the_annotated_tree_core(
    built: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with server_arguments(), caplog.at_level(logging.INFO):
        radix_cache.create_annotated_cache(context())
    assert built[0].params.tree_core_backend == radix_cache.BACKEND
    assert not caplog.records


@pytest.mark.parametrize(
    ("fields", "arguments", "reason"),
    [
        ({"disable_radix_cache": True}, {}, "disabled"),
        ({"is_hybrid_swa": True}, {}, "sliding-window"),
        ({"is_hybrid_ssm": True}, {}, "Mamba"),
        ({"enable_hierarchical_cache": True}, {}, "--enable-hierarchical-cache"),
        ({"is_eagle": True}, {}, "EAGLE"),
        ({"enable_session_radix_cache": True}, {}, "--enable-session-radix-cache"),
        ({"req_to_token_pool": SimpleNamespace(req_to_c128_sidecar=None)}, {}, "C128"),
        ({}, {"enable_lmcache": True}, "--enable-lmcache"),
        ({}, {"enable_flexkv": True}, "--enable-flexkv"),
        ({}, {"enable_unified_cache_external_linker": True}, "external store"),
        ({}, {"enable_kv_cache_sharding": True}, "--enable-kv-cache-sharding"),
        ({}, {"disaggregation_decode_retraction_backup": "host_pool"}, "host pool"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_caches_that_cannot_be_annotated_stay_upstreams_with_one_line_why(
    built: list[Any],
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, Any],
    arguments: dict[str, Any],
    reason: str,
) -> None:
    with server_arguments(**arguments), caplog.at_level(logging.INFO):
        radix_cache.create_annotated_cache(context(**fields))
    assert built[0].params.tree_core_backend is None
    assert [reason in record.message for record in caplog.records] == [True]


def test_a_tree_core_chosen_in_the_environment_stays(
    built: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND", "python")
    with server_arguments():
        radix_cache.create_annotated_cache(context())
    assert built[0].params.tree_core_backend is None


@pytest.mark.parametrize(
    "arguments",
    [{"radix_eviction_policy": "lfu"}, {"_radix_eviction_policy_explicitly_set": True}],
    ids=["lfu", "explicit-lru"],
)
def test_an_eviction_policy_that_the_user_chose_decides_and_is_mentioned(
    built: list[Any], caplog: pytest.LogCaptureFixture, arguments: dict[str, Any]
) -> None:
    with server_arguments(**arguments), caplog.at_level(logging.INFO):
        radix_cache.create_annotated_cache(context())
        assert built[0].params.tree_core_backend == radix_cache.BACKEND
        core = make_cache().tree_core
    assert "--radix-eviction-policy" in caplog.text
    assert isinstance(core, AnnotatedTreeCore)
    assert not core.plans_eviction


def test_other_tree_cores_cannot_be_annotated() -> None:
    with server_arguments():
        cache = make_cache(tree_core="python")
    assert radix_cache.annotated_core(cache) is None
    assert not radix_cache.attach_planner(cache, None, None, None)  # type: ignore[arg-type]
