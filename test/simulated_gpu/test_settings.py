"""What is simulated comes from the environment; mistakes name the remedy."""

import pytest

from sglang.srt.hardware_backend.simulated_gpu.activation import activate
from sglang.srt.hardware_backend.simulated_gpu.settings import (
    ENGINE,
    HARDWARE,
    TENSOR_PARALLEL,
    SimulationSettings,
)
from sglang.srt.hardware_backend.simulated_gpu.step_log import COLUMNS, StepLog


def test_it_is_chosen_by_name_only(monkeypatch):
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    assert activate() is None
    monkeypatch.setenv("SGLANG_PLATFORM", "portable_cpu")
    assert activate() is None


def test_defaults_and_variables(monkeypatch):
    for name in (HARDWARE, ENGINE):
        monkeypatch.delenv(name, raising=False)
    assert SimulationSettings.from_environment().hardware.name == "a100-80gb"
    monkeypatch.setenv(HARDWARE, "h100")
    monkeypatch.setenv(ENGINE, "overlapped")
    settings = SimulationSettings.from_environment()
    assert settings.hardware.name == "h100"
    assert settings.engine_for(mixed_chunk=True) == "overlapped"


def test_the_engine_follows_mixed_chunks():
    hardware = SimulationSettings.from_environment().hardware
    assert SimulationSettings(hardware).engine_for(mixed_chunk=True) == "mixed"
    assert SimulationSettings(hardware).engine_for(mixed_chunk=False) == "alternating"
    with pytest.raises(ValueError, match="drop --enable-mixed-chunk"):
        SimulationSettings(hardware, "alternating").engine_for(mixed_chunk=True)


def test_unknown_names_list_the_choices(monkeypatch):
    monkeypatch.setenv(ENGINE, "eager")
    with pytest.raises(ValueError, match="alternating, mixed, pdmux, overlapped"):
        SimulationSettings.from_environment()
    monkeypatch.setenv(ENGINE, "")
    monkeypatch.setenv(HARDWARE, "abacus")
    with pytest.raises(ValueError, match="a100-80gb"):
        SimulationSettings.from_environment()


def test_the_log_grows_and_sums():
    log = StepLog()
    for i in range(3000):
        log.append({name: float(i) for name in COLUMNS})
    assert len(log) == 3000
    assert log["kv_tokens"].tolist() == list(range(3000))
    assert log.totals()["steps"] == 3000
    assert log.totals()["seconds"] == sum(range(3000))


def test_an_impossible_number_of_gpus_is_refused(monkeypatch):
    monkeypatch.setenv(TENSOR_PARALLEL, "0")
    with pytest.raises(ValueError, match="SGLANG_SIMULATED_GPU_TP=0"):
        SimulationSettings.from_environment()
