"""A range of SGLang versions: each difference has its adapter, and what is outside the range is said."""

from __future__ import annotations

import logging
import os
import pkgutil
import re
from importlib import metadata
from pathlib import Path

import pytest

from sglang.batch.doctor import software
from sglang.srt.blend.runtime import compatibility, versions
from sglang.srt.utils import common

ROOT = Path(__file__).resolve().parents[2]
MATRIX = re.findall(r"^SGLANG_VERSIONS \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> str:
    """An SGLang that nobody has tested."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9.9" if name == "sglang" else real(name))
    compatibility._warn_of.cache_clear()
    return "9.9.9"


def test_the_matrix_is_within_the_range_and_ends_with_the_pinned_version() -> None:
    assert all(versions.required_sglang().specifier.contains(version) for version in MATRIX)
    assert f"sglang=={MATRIX[-1]}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_version_under_test_is_the_one_asked_for() -> None:
    asked = os.environ.get("SGLANG_TESTED_VERSION", metadata.version("sglang"))
    assert asked == metadata.version("sglang")
    assert versions.outside_range() == ""


@pytest.mark.parametrize("package", compatibility.OURS)
def test_upstream_has_whatever_is_imported_from_it(package: str) -> None:
    symbols = compatibility.imported_symbols(package)
    assert symbols
    assert not any(symbol.startswith(compatibility.OURS) for symbol in symbols)
    assert compatibility.problems(symbols, ()) == []


def test_an_untested_version_that_has_everything_is_warned_of_once(
    newer: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        compatibility.require([])
        compatibility.require([])
    (line,) = caplog.messages
    assert f"SGLang {newer} is none that sglang-blend is tested with" in line


def test_an_untested_version_that_lacks_something_is_refused_by_name_with_the_range(newer: str) -> None:
    wanted = re.escape(str(versions.required_sglang()))
    with pytest.raises(compatibility.UnsupportedSGLang, match=rf"SGLang {newer}: a\.b does not .*{wanted}"):
        compatibility.require(["a.b does not exist"])


def test_a_name_that_the_policy_imports_is_missed_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    symbol = "sglang.srt.session.streaming_session.is_virtual_node"
    owner, _, name = symbol.rpartition(".")
    monkeypatch.delattr(pkgutil.resolve_name(owner), name)
    assert compatibility.problems([]) == [f"{symbol} does not exist"]


def test_names_for_type_checkers_and_optional_ones_are_not_asked_for() -> None:
    every = {symbol for package in compatibility.OURS for symbol in compatibility.imported_symbols(package)}
    assert "sglang.srt.managers.schedule_policy.PrefillAdder" in every
    assert "sglang.srt.mem_cache.cache_init_params.CacheInitParams" not in every  # under TYPE_CHECKING
    assert not every & set(versions.ADAPTERS)


def test_without_a_containers_limit_memory_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("get_free_cpu_memory", "get_instance_memory_status"):
        monkeypatch.delattr(common, name, raising=False)
    assert versions.memory_limit() is None
    assert versions.free_memory() > 0
    assert versions.adapted() == [f"no {symbol}: {instead}" for symbol, instead in versions.ADAPTERS.items()]
    adapters = next(one for one in software.hooks({}) if one.name == "adapters")
    assert "container" in adapters.value
    assert adapters.remedy == ""  # works as it is
