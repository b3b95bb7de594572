"""Hooks: verified, loud when upstream has changed, silent for every other policy."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys

import pytest

from sglang.srt.blend.runtime import plugin
from sglang.srt.blend.runtime.compatibility import (
    REQUIRED,
    UnsupportedSGLang,
    imported_symbols,
    problems,
    require,
)

SYMBOLS = [*plugin.TARGETS, *(symbol for symbol, _ in REQUIRED), *imported_symbols("sglang.srt.blend")]


def run_python(code: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_installed_sglang_has_everything():
    assert problems(plugin.TARGETS) == []


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_missing_symbol_is_reported_by_name(symbol, monkeypatch):
    owner, _, name = symbol.rpartition(".")
    monkeypatch.delattr(pkgutil.resolve_name(owner), name)
    assert problems(plugin.TARGETS) == [f"{symbol} does not exist"]


def test_a_lost_parameter_is_reported_by_name(monkeypatch):
    from sglang.srt.managers.schedule_policy import PrefillAdder

    monkeypatch.setattr(PrefillAdder, "add_one_req", lambda self, req, has_chunked_req: None)
    assert problems([]) == [
        "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req has no parameter truncation_align_size"
    ]


def test_the_refusal_names_the_symbol_and_the_remedy():
    with pytest.raises(UnsupportedSGLang, match=r"a\.b does not exist.*choose another --schedule-policy"):
        require(["a.b does not exist"])


# Removes a symbol before plugins load, then starts an engine up to the point where processes would be
# launched: what a user sees with an SGLang that has lost it.
_START = """
import pkgutil, sys
symbol, policy = sys.argv[1:]
owner, _, name = symbol.rpartition(".")
import sglang.srt.entrypoints.engine as engine, sglang.srt.managers.scheduler
delattr(pkgutil.resolve_name(owner), name)
from sglang.srt.plugins import load_plugins
load_plugins()
record = engine.Engine.server_args_class(model_path="none", device="cpu", schedule_policy=policy)
record.resolve_once()
print("started")
"""


@pytest.mark.parametrize(
    "symbol",
    [
        "sglang.srt.managers.scheduler.Scheduler.init_schedule_policy",
        "sglang.srt.managers.schedule_policy.PrefillAdder._check_prefill_budget",
    ],
)
def test_a_blend_server_stops_at_start_up_and_names_what_upstream_lacks(symbol):
    result = run_python(_START, symbol, "blend")
    assert result.returncode != 0
    assert "UnsupportedSGLang: --schedule-policy blend cannot run" in result.stderr
    assert f"{symbol} does not exist" in result.stderr
    assert "started" not in result.stdout


def test_other_policies_start_on_a_changed_upstream():
    result = run_python(
        _START, "sglang.srt.managers.schedule_policy.PrefillAdder._check_prefill_budget", "fcfs"
    )
    assert "started" in result.stdout, result.stderr


def test_registering_twice_applies_every_hook_once():
    result = run_python(
        """
import sglang.srt.managers.scheduler as scheduler
from sglang.srt.blend.runtime import plugin
from sglang.srt.plugins import load_plugins
plugin.ensure_registered()
load_plugins()
plugin.ensure_registered()
load_plugins()
assert plugin.unapplied() == [], plugin.unapplied()
hooked = scheduler.Scheduler.init_schedule_policy
assert not hasattr(hooked.__wrapped__, "__wrapped__")
print("fine")
"""
    )
    assert "fine" in result.stdout, result.stderr


def test_hooks_wait_for_their_modules_instead_of_importing_them():
    result = run_python(
        """
import sys
from sglang.srt.plugins import load_plugins
load_plugins()
assert "sglang.srt.managers.scheduler" not in sys.modules
import sglang.srt.managers.scheduler
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.blend.runtime import plugin
assert plugin.unapplied() == [], plugin.unapplied()
print("fine")
"""
    )
    assert "fine" in result.stdout, result.stderr


# Upstream skips the entry point of a distribution that ships an unselected platform.
_EXCLUDED = """
import sglang.srt.plugins as plugins
plugins._get_excluded_dists = lambda: {"sglang-blend"}
plugins.load_plugins()
import argparse, sglang.srt.server_args as server_args
from sglang.srt.platforms import current_platform
current_platform.device_name
record = server_args.prepare_server_args(
    ["--model-path", "none", "--schedule-policy", "blend", "--blend-window", "5"]
)
from sglang.srt.blend.runtime.arguments import get_options
assert get_options(record).window == 5
import sglang.srt.managers.scheduler
server_args  # a scheduler process loads plugins again
sglang.srt.managers.scheduler.load_plugins()
from sglang.srt.blend.runtime import plugin
assert plugin.unapplied() == [], plugin.unapplied()
print("fine")
"""


def test_a_platform_of_ours_brings_the_plugin_back_when_upstream_skips_it():
    result = run_python(_EXCLUDED, SGLANG_PLATFORM="portable_cpu")
    assert "fine" in result.stdout, result.stderr


def test_the_plugin_imports_neither_torch_nor_the_scheduler_by_itself():
    code = (
        "import sys, sglang.srt.blend.runtime.plugin\n"
        "assert not {'sglang.srt.managers.scheduler', 'sglang.srt.server_args'} & set(sys.modules)\n"
    )
    assert run_python(code).returncode == 0


def test_preemptible_requests_are_the_first_to_be_retracted():
    from types import SimpleNamespace

    from sglang.srt.blend.runtime.plugin import _preemptible_last

    pool = SimpleNamespace(is_preemptible=lambda req: req.preemptible)
    reqs = [SimpleNamespace(blend_pool=pool, preemptible=one) for one in (True, False, True, False)]
    assert _preemptible_last([2, 1, 0, 3], reqs) == [1, 3, 2, 0]  # upstream retracts from the end


def test_without_the_policy_the_order_of_retraction_is_upstreams():
    from types import SimpleNamespace

    from sglang.srt.blend.runtime.plugin import _preemptible_last

    assert _preemptible_last([2, 0, 1], [SimpleNamespace() for _ in range(3)]) == [2, 0, 1]
