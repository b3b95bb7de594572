"""Hardware profiles."""

import pytest

from sglang.srt.blend.core.cost.hardware import hardware_names, load_hardware

REQUIRED = {"a100-40gb", "a100-80gb", "h100", "h200", "l4", "l40s", "b200", "mi300x"}


def test_the_accelerators_we_plan_for_are_there():
    assert set(hardware_names()) >= REQUIRED


@pytest.mark.parametrize("name", hardware_names())
def test_profile_is_plausible_and_names_its_source(name):
    profile = load_hardware(name)
    assert profile.source
    # Ridge points of machines that run language models: single digits on CPUs, hundreds on accelerators.
    assert 4 < profile.flops / profile.bandwidth < 800
    assert profile.memory < 1e12


def test_driver_names_find_profiles():
    assert load_hardware("NVIDIA H100 80GB HBM3").name == "h100"
    assert load_hardware("A100").name == "a100-80gb"


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"'tpu': unknown; choose one of a100-40gb.*or the path of a \.toml"):
        load_hardware("tpu")


def test_measured_profile_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("flops = 1e14\nbandwidth = 1e12\nmemory = 4e10\nmeasured = true\n")
    profile = load_hardware(str(path))
    assert (profile.name, profile.flops, profile.measured) == ("mine", 1e14, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flops = 1e14\n", "missing 2 required"),
        ("flops = -1.0\nbandwidth = 1e12\nmemory = 1e9\n", r"flops must be positive, got -1\.0"),
        ("flops = 'fast'\nbandwidth = 1e12\nmemory = 1e9\n", "flops must be positive, got 'fast'"),
        (
            "flops = 1.0\nbandwidth = 1.0\nmemory = 1.0\ngemm_efficiency = 2.0\n",
            r"gemm_efficiency must be in",
        ),
        ("flops =", "not TOML"),
        (
            "flops = 1.0\nbandwidth = 1.0\nmemory = 1.0\n[assumed]\noverhead = 1.0\n",
            "assumed 'overhead' is unknown; choose among prefill_attention_efficiency",
        ),
        ("flop = 1.0\n", "flop"),
    ],
)
def test_bad_file_is_explained(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_hardware(str(path))


def test_missing_file_is_named():
    with pytest.raises(ValueError, match=r"'/nowhere/x\.toml': No such file"):
        load_hardware("/nowhere/x.toml")
