"""The kit's command line, without a GPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark.gpu import __main__ as command
from benchmark.gpu import all_reduce
from benchmark.gpu.layer import TINY, Layer
from benchmark.gpu.machine import find_machine
from benchmark.gpu.points import read_points

from sglang.srt.blend.core.cost.hardware import load_hardware

ROOT = Path(__file__).resolve().parents[2]

WITHOUT_SGLANG = """
import sys, types
sys.path.insert(0, {root!r})
ours = types.ModuleType("sglang")
ours.__path__ = [{root!r} + "/python/sglang"]
sys.modules["sglang"] = ours

from benchmark.gpu.__main__ import main
code = main(["--device", "cpu", "--only", "gemm,decode", "--out", sys.argv[1]])
upstream = [name for name, module in sys.modules.items()
            if name.startswith("sglang") and "site-packages" in str(getattr(module, "__file__", ""))]
assert upstream == [], upstream
needed = [name for name in ("transformers", "zmq", "fastapi", "msgspec", "numba") if name in sys.modules]
assert needed == [], needed
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no NVIDIA GPU: PyTorch sees no CUDA device here"),
        (["--only", "gemm,gem"], "--only gem: choose among gemm, decode, prefill, together, all-reduce"),
        (["--device", "cpu", "--model-path", "nowhere"], "--model-path nowhere: no config.json"),
        (["--out", __file__], "is a file; name a folder"),
    ],
)
def test_what_cannot_run_gets_one_clear_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_help_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    told = capsys.readouterr().out
    assert "python -m benchmark.gpu --only gemm,decode" in told
    assert "2 bad usage or no GPU" in told


def test_a_trial_runs_on_a_cpu_where_sglang_is_not_installed(tmp_path: Path) -> None:
    script = WITHOUT_SGLANG.format(root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert load_hardware(str(tmp_path / "measured-this-cpu.toml")).measured
    points = read_points(tmp_path / "measurements.csv")
    assert len(points) == len(command.TRIAL.rows) + len(command.TRIAL.pools)
    assert min(point.seconds for point in points) > 0.0
    assert "this was a trial on a CPU" in done.stderr


def test_a_rank_reduces_and_tells_its_times(tmp_path: Path) -> None:
    all_reduce._rank(0, 1, str(tmp_path), "cpu", 64, (1, 8))
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert len(seconds) == 2
    assert min(seconds) > 0.0


def test_all_ranks_reduce_by_twos_and_one_has_nothing_to_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def spawn(function: object, arguments: tuple[int, str, str, int, tuple[int, ...]], nprocs: int) -> None:
        ranks, folder, *rest = arguments
        started.append((ranks, nprocs, rest))
        (Path(folder) / "seconds.json").write_text(json.dumps([0.1 * ranks, 0.2 * ranks]))

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    layer = Layer.of(TINY, 4)
    points = list(all_reduce.measure(replace(find_machine("cpu"), count=7), layer, (1, 8)))
    assert [(p.rows, p.ranks, p.seconds) for p in points] == [
        (1, 2, 0.2),
        (8, 2, 0.4),
        (1, 4, 0.4),
        (8, 4, 0.8),
    ]
    assert started == [(n, n, ["cpu", 64, (1, 8)]) for n in (2, 4)]
    assert list(all_reduce.measure(replace(find_machine("cpu"), count=1), layer, (1, 8))) == []


def test_a_machine_without_ways_to_divide_or_reduce_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    machine = replace(find_machine("cpu"), count=1)
    kinds = ("together", "all-reduce")
    points = list(command.measure(kinds, machine, Layer.of(TINY, 4), replace(command.TRIAL, pairs=())))
    told = capsys.readouterr().err
    assert points == []
    assert "no division of the SMs: hardware profile 'this CPU'" in told
    assert "no all-reduce: this machine has one GPU" in told
