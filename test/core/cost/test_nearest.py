"""Devices without a profile of their own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blend.core.cost.hardware import hardware_names, known_names, load_hardware
from sglang.srt.blend.core.cost.nearest import Device, hardware_of


@pytest.mark.parametrize("name", [name for name in hardware_names() if name != "cpu"])
def test_every_name_that_a_driver_is_known_to_report_finds_its_own_profile(name):
    for reported in known_names(name):
        assert hardware_of(Device(reported)) == (load_hardware(name), "")


@pytest.mark.parametrize(
    ("reported", "memory", "nearest"),
    [
        ("NVIDIA GeForce RTX 4090 D", 24e9, "rtx-4090"),
        ("NVIDIA A100-SXM-64GB", 64e9, "a100-80gb"),
        ("NVIDIA A100-PG509-200", 40e9, "a100-40gb"),
        ("NVIDIA H100 80GB HBM2e", 80e9, "h100"),
        ("NVIDIA GH200 144G HBM3e", 144e9, "gh200"),
        ("NVIDIA H20-3e", 141e9, "h20"),
        ("AMD Instinct MI325X OAM", 256e9, "mi325x"),
        ("Tesla V100-PCIE-16GB", 16e9, "v100"),
    ],
)
def test_a_name_that_contains_a_known_model_finds_it(reported, memory, nearest):
    found, how = hardware_of(Device(reported, memory=memory))
    assert (found.name, how) == (nearest, "name")


def test_where_the_name_says_nothing_generation_and_size_decide():
    # An RTX 3080 and an RTX PRO 5000, as PyTorch describes them.
    ampere = Device("unheard of", 10e9, multiprocessors=68, compute_capability=8.6, bandwidth=760e9)
    blackwell = Device("unheard of", 48e9, multiprocessors=110, compute_capability=12.0, bandwidth=1.34e12)
    assert hardware_of(ampere)[0].compute_capability == 8.6
    assert hardware_of(blackwell)[0].compute_capability == 12.0


@given(
    st.text(),
    st.floats(0, 1e12),
    st.integers(0, 300),
    st.floats(0, 20),
    st.floats(0, 2e13),
)
def test_every_device_has_a_nearest_profile_and_never_the_cpus(name, memory, sms, capability, bandwidth):
    found, _ = hardware_of(Device(f"NVIDIA {name}", memory, sms, capability, bandwidth))
    assert found.name in hardware_names()
    assert found.name != "cpu"
