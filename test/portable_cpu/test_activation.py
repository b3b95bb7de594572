"""The CPU platform serves machines without an accelerator and leaves every other machine alone."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.hardware_backend.portable_cpu import activate
from sglang.srt.hardware_backend.portable_cpu.activation import usable_accelerators
from sglang.srt.hardware_backend.portable_cpu.srt_platform import PortableCpuPlatform


def _fake(monkeypatch: pytest.MonkeyPatch, name: str, *, available: bool) -> None:
    device = SimpleNamespace(is_available=lambda: available)
    monkeypatch.setattr(torch, name, device, raising=False)


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No accelerator and no environment variable that says otherwise, wherever the test runs."""
    for variable in ("SGLANG_PLATFORM", "SGLANG_USE_CPU_ENGINE"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("cuda", "xpu", "npu", "mps", "hpu"):
        _fake(monkeypatch, name, available=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "musa", None, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    return monkeypatch


def _with_device(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: _fake(monkeypatch, name, available=True)


def _with_rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch, "cuda", available=True)
    monkeypatch.setattr(torch.version, "hip", "7.1")


def _with_musa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "musa", "4.3", raising=False)


def _with_unknown_vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))


ACCELERATORS = {
    "cuda": _with_device("cuda"),
    "rocm": _with_rocm,
    "npu": _with_device("npu"),
    "xpu": _with_device("xpu"),
    "mps": _with_device("mps"),
    "hpu": _with_device("hpu"),
    "musa": _with_musa,
    "meta": _with_unknown_vendor,
}


def test_serves_a_machine_without_accelerator(bare_machine: pytest.MonkeyPatch) -> None:
    assert activate() == f"{PortableCpuPlatform.__module__}.{PortableCpuPlatform.__name__}"


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_never_takes_over_a_machine_with_an_accelerator(bare_machine: pytest.MonkeyPatch, kind: str) -> None:
    ACCELERATORS[kind](bare_machine)
    assert usable_accelerators() == [kind]
    assert activate() is None


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_can_be_asked_for_by_name_beside_an_accelerator(bare_machine: pytest.MonkeyPatch, kind: str) -> None:
    ACCELERATORS[kind](bare_machine)
    bare_machine.setenv("SGLANG_PLATFORM", "portable_cpu")
    assert activate() is not None


def test_leaves_upstreams_cpu_engine_to_those_who_ask_for_it(bare_machine: pytest.MonkeyPatch) -> None:
    bare_machine.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert activate() is None


def test_asking_for_it_by_name_keeps_the_schedulers_plugin(bare_machine: pytest.MonkeyPatch) -> None:
    """Upstream drops the general plugins of a distribution that ships an unselected platform: ours."""
    from sglang.srt.blend.runtime import plugin

    calls = []
    bare_machine.setattr(plugin, "ensure_registered", lambda: calls.append(1))
    activate()
    assert calls == []
    bare_machine.setenv("SGLANG_PLATFORM", "portable_cpu")
    activate()
    assert calls == [1]
