"""`sglang-batch calibrate`: what it times and what it writes; rates themselves are the machine's business."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sglang.batch import cli
from sglang.batch.calibrate import command
from sglang.batch.calibrate.calibration import Calibration, to_toml
from sglang.batch.calibrate.measure import layer_matrices, measure
from sglang.batch.usage import BadUsage
from sglang.srt.blend.core.cost.hardware import Hardware, load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.runtime import device_speed
from sglang.srt.blend.runtime.arguments import BlendOptions
from sglang.srt.blend.runtime.device_speed import gemm_rates

MEASURED = Calibration(
    tokens=(1, 512),
    gemm={"float32": [6e9, 184.2e9], "bfloat16": [7e9, 1039.4e9]},
    bandwidth=13.64e9,
    memory=16 * 10**9,
    machine='a "CPU", 2 threads',
)
SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "vocab_size": 128,
}


def config(**sizes: int) -> SimpleNamespace:
    text = SimpleNamespace(**sizes)
    text.get_text_config = lambda: text
    return text


def test_the_written_profile_is_one_that_blend_hardware_accepts(tmp_path: Path) -> None:
    path = tmp_path / "this-machine.toml"
    path.write_text(to_toml(MEASURED.profile("bfloat16", path.stem), MEASURED.table()))
    assert BlendOptions(hardware=str(path)).hardware == str(path)
    profile = load_hardware(str(path))
    assert profile.name == "this-machine"
    assert profile.flops == pytest.approx(1039.4e9, rel=1e-3)
    assert profile.bandwidth == pytest.approx(7e9, rel=1e-3)
    assert profile.measured
    assert profile.source.endswith('a "CPU", 2 threads')


def test_a_written_profile_has_every_figure_that_was_measured(tmp_path: Path) -> None:
    profile = Hardware(
        "gpu",
        9.89e14,
        3.35e12,
        8e10,
        0.71,
        0.88,
        132,
        9.0,
        4.5e11,
        3.1e10,
        {"interference": 0.2},
        True,
        "here",
    )
    path = tmp_path / "gpu.toml"
    path.write_text(to_toml(profile, "a table", what="a GPU"))
    assert load_hardware(str(path)) == profile


def test_reached_rates_are_not_reduced_again() -> None:
    profile = MEASURED.profile("float32", "x")
    assert (profile.flops, profile.gemm_efficiency, profile.bandwidth_efficiency) == (184.2e9, 1.0, 1.0)


def test_decoding_reads_as_fast_as_products_of_one_token_and_memory_allow() -> None:
    assert MEASURED.decode_bandwidth("bfloat16") == 7e9
    assert MEASURED.decode_bandwidth("float32") == 12e9
    assert replace(MEASURED, bandwidth=5e9).decode_bandwidth("float32") == 5e9


def test_the_fastest_dtype_is_the_one_with_the_highest_rate() -> None:
    assert MEASURED.fastest() == "bfloat16"


def test_the_table_has_a_row_for_each_step_size_and_one_for_memory() -> None:
    rows = [line.split() for line in MEASURED.table().splitlines()]
    assert rows[0][-2:] == ["float32", "bfloat16"]
    assert rows[2] == ["512", "184", "1,039", "GFLOP/s"]
    assert rows[-1] == ["memory", "reads", "13.6", "GB/s"]


def test_the_timed_matrices_are_the_models_layers() -> None:
    matrices, layers = layer_matrices(config(**SIZES))
    shape = ModelShape.from_config(SIZES)
    assert layers * sum(a * b for a, b in matrices) == shape.gemm_params - shape.head_params


def test_a_config_without_sizes_is_refused() -> None:
    with pytest.raises(BadUsage, match="num_attention_heads"):
        layer_matrices(config(hidden_size=64))


def test_a_rate_is_the_flop_of_all_layers_by_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []

    def product(weight):
        return lambda x: products.append((x.shape, weight.shape))

    def two_seconds(work, rounds, device):
        work()
        return 2.0

    monkeypatch.setattr(device_speed, "best_seconds", two_seconds)
    rates = list(gemm_rates([(4, 8), (8, 4)], 3, torch.float32, rounds=1, tokens=(1, 5), product=product))
    assert rates == [2 * 1 * 3 * 64 / 2.0, 2 * 5 * 3 * 64 / 2.0]
    assert len(products) == 2 * 3 * 2
    assert products[-1] == ((5, 8), (4, 8))


@pytest.mark.parametrize(("seconds", "calls"), [(0.25, 4), (8.0, 1)])
def test_what_takes_long_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, seconds: float, calls: int
) -> None:
    clock = [0.0]
    monkeypatch.setattr(device_speed.time, "perf_counter", lambda: clock[0])
    done = []

    def work() -> None:
        done.append(None)
        clock[0] += seconds

    assert device_speed.best_seconds(work, 3) == seconds
    assert len(done) == calls


def test_everything_is_measured_for_real() -> None:
    result = measure([(32, 32)], 2, rounds=1, tokens=(1, 4))
    assert {dtype: len(rates) for dtype, rates in result.gemm.items()} == {"float32": 2, "bfloat16": 2}
    assert min(*result.gemm["float32"], *result.gemm["bfloat16"], result.bandwidth) > 0
    assert "thread" in result.machine


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-o", "profile.txt"], "name it *.toml"),
        (["-o", "nowhere/x.toml"], "folder nowhere does not exist"),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--threads", "-2"], "--threads -2"),
        (["--model-path", "no/such/folder"], "config.json cannot be read"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["calibrate", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_an_existing_profile_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("precious")
    assert cli.main(["calibrate", "-o", str(path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert path.read_text() == "precious"


def test_without_output_the_profile_goes_to_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_config", lambda path: config(**SIZES))
    monkeypatch.setattr(command, "measure", lambda *_, **__: MEASURED)
    assert cli.main(["calibrate", "--model-path", str(tmp_path)]) == 0
    output = capsys.readouterr()
    path = tmp_path / "copied.toml"
    path.write_text(output.out)
    assert load_hardware(str(path)).flops == pytest.approx(1039.4e9, rel=1e-3)
    assert "1,039  GFLOP/s" in output.err
