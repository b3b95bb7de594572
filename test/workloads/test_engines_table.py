"""The table of engines: the strongest baseline of each, what blend gains, and what no schedule could."""

import json

import pytest
from benchmark.paper import engines
from benchmark.paper.__main__ import scaled
from benchmark.paper.compare import Run

from sglang.srt.blend.core.cost.engines import engine_names


def record(policy, engine, seconds, *, trace=1, variant="", bound=0.9):
    usual = {"compute": "burstgpt", "model": "llama-3-8b", "hardware": "a100-80gb"}
    run = {"trace": trace, "policy": policy, "engine": engine, "variant": variant, "seconds": seconds}
    return usual | run | {"bound_share": bound, "seed": 0, "commit": "abc"}


TABLE = [
    record("blend", "overlapped", 50.0),
    record("dfs", "alternating", 120.0),
    record("dfs", "mixed", 100.0),
    record("lof", "mixed", 90.0, variant="chunks of 1024"),
    record("blend", "mixed", 80.0),
    record("dfs", "pdmux", 110.0),
    record("dfs", "pdmux", 100.0, variant="fitted"),
    record("blend", "pdmux", 90.0),
    record("blend", "pdmux", 80.0, variant="fitted", bound=0.8),
]


def test_engines_of_upstream_come_first_each_with_its_strongest_runs():
    lines = engines.best(TABLE)
    assert [line.engine for line in lines] == engine_names()
    mixed, pdmux = lines[1], lines[2]
    assert (mixed.upstream["policy"], mixed.upstream["seconds"]) == ("lof", 90.0)
    assert (pdmux.upstream["seconds"], pdmux.blend["seconds"]) == (100.0, 80.0)
    assert lines[0].gain is None


def test_figures_are_of_the_best_and_the_bound_says_what_is_out_of_reach():
    figures = engines.summary(engines.best(TABLE))
    assert figures["blend over upstream's best, pdmux, mean"] == 1.25
    assert figures["blend, pdmux over mixed, mean"] == 1.0
    assert figures["the same if pdmux reached its bound"] == pytest.approx(80 / 64)
    text = engines.text(TABLE)
    assert "NanoFlow-like; not in upstream" in text
    assert "bar 1.20   (simulated)" in text
    assert "bar 1.10, missed" in text


def test_the_result_names_its_command_and_every_runs_seed_and_commit(tmp_path):
    engines.write_json(tmp_path / "engines.json", TABLE, "python -m benchmark.paper engines")
    written = json.loads((tmp_path / "engines.json").read_text())
    assert written["command"] == "python -m benchmark.paper engines"
    assert {line["blend"]["commit"] for line in written["best"] if line["blend"]} == {"abc"}
    engines.draw(tmp_path / "engines.png", TABLE)
    assert (tmp_path / "engines.png").stat().st_size > 5000


def test_scaling_shortens_videos_too():
    run = Run(1, "blend", "pdmux", 1000, video_tokens=400)
    assert scaled(run, 0.5) == Run(1, "blend", "pdmux", 500, video_tokens=200)
    assert scaled(run, 1.0) is run
