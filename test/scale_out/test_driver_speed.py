"""A small run of the benchmark of the driver: every line is counted once."""

import json
from pathlib import Path

from benchmarks import run_benchmark


def test_many_replicas_behind_one_driver_answer_every_line_once(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    sizes = ["--lines", "600", "--replicas", "16"]
    done = run_benchmark("driver_speed", *sizes, "--json", str(figures), timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(figures.read_text())
    assert report["lines"] == 600
    assert report["replicas"] == "16 stand-ins"
    assert report["lines_per_cpu_second"] > 0
    assert report["peak_mib"] > 0
