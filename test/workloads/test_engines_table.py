"""The table of engines: the strongest baseline of each, what blend gains, and what no schedule could."""

import json
from dataclasses import asdict, replace

import pytest
from benchmark.paper import __main__ as paper
from benchmark.paper import engines
from benchmark.paper.__main__ import scaled
from benchmark.paper.compare import Run, workload_of

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
    figures = engines.summary(TABLE)
    assert figures["blend over upstream's best, pdmux, mean"] == 1.25
    assert figures["blend, pdmux over mixed, mean"] == 1.0
    assert figures["the same if pdmux reached its bound"] == pytest.approx(80 / 64)
    text = engines.text(TABLE)
    assert "NanoFlow-like; not in upstream" in text
    assert "bar 1.20   (simulated)" in text
    assert "bar 1.10, missed" in text


def test_jobs_do_not_count_among_traces():
    jobs = [{**run, "trace": 0, "job": "agents", "seconds": 2 * run["seconds"]} for run in TABLE[:-1]]
    figures = engines.summary(TABLE + jobs)
    assert figures["blend over upstream's best, pdmux, mean"] == 1.25
    assert figures["jobs: blend over upstream's best, pdmux, mean"] == pytest.approx(100 / 90)


def test_the_result_names_its_command_and_every_runs_seed_and_commit(tmp_path):
    engines.write_json(tmp_path / "engines.json", TABLE, "python -m benchmark.paper engines")
    written = json.loads((tmp_path / "engines.json").read_text())
    assert written["command"] == "python -m benchmark.paper engines"
    assert {line["blend"]["commit"] for line in written["best"] if line["blend"]} == {"abc"}
    engines.draw(tmp_path / "engines.png", TABLE)
    assert (tmp_path / "engines.png").stat().st_size > 5000


def test_scaling_shortens_videos_too():
    run = Run(1, "blend", "pdmux", 1000, video_tokens=8192)
    assert scaled(run, 0.5) == Run(1, "blend", "pdmux", 500, video_tokens=4096)
    assert scaled(run, 1.0) is run


@pytest.mark.parametrize("trace", [1, 2, 3, 4])
def test_the_small_table_is_of_mixes_that_exist(trace):
    runs = [scaled(run, 0.05) for run in paper.TABLES["engines"]() if run.trace == trace]
    assert len(workload_of(runs[0])) > 300


def test_an_unfinished_table_is_reported_as_far_as_it_goes(tmp_path, monkeypatch, capsys):
    wanted = paper.TABLES["engines"]()
    runs = [run for run in wanted if run.trace == 1 and run.policy == "blend" and not run.variant]
    result = {"seconds": 10.0, "bound_share": 0.9, "commit": "abc"}
    rows = [json.dumps({**asdict(run), **result}) for run in runs]
    (tmp_path / "engines.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr("sys.argv", ["benchmark.paper", "engines", "--report", "--out", str(tmp_path)])
    assert paper.main() == 0
    printed = capsys.readouterr()
    assert f"{len(wanted) - len(runs)} of {len(wanted)} runs are missing" in printed.err
    assert "blend, pdmux over mixed, mean" in printed.out
    written = json.loads((tmp_path / "engines.json").read_text())
    assert written["missing"] == len(wanted) - len(runs)
    assert written["command"] == f"python -m benchmark.paper engines --out {tmp_path}"


@pytest.mark.parametrize("job", ["", "images"])
def test_known_lengths_are_told_of_a_job_and_of_a_mix(job):
    run = Run(0, "blend", "mixed", 100, density=1.0, sharing=0.2, job=job)
    assert not workload_of(run).known.all()
    told = workload_of(replace(run, variant="known lengths"))
    assert told.known.all()
    assert (told.max_new_tokens == told.output).all()


def test_each_seed_is_a_workload_of_its_own_and_the_worst_is_of_all():
    def job(policy, seconds, seed):
        return {**record(policy, "mixed", seconds), "trace": 0, "job": "agents", "seed": seed}

    runs = [job("dfs", 120.0, 0), job("blend", 100.0, 0), job("dfs", 90.0, 1), job("blend", 100.0, 1)]
    assert [line.workload for line in engines.best(runs)] == ["agents", "agents, seed 1"]
    figures = engines.summary(runs)
    assert figures["jobs: blend over upstream's best, mixed, worst"] == 0.9
    assert figures["jobs: blend over upstream's best, mixed, mean"] == pytest.approx(1.05)


def test_a_table_can_be_of_some_engines_and_jobs_with_several_seeds():
    flags = "real --engine mixed --job agents --job images --seeds 3"
    runs = paper._wanted(paper._parser().parse_args(flags.split()))
    assert {(run.engine, run.job, run.seed) for run in runs} == {
        ("mixed", job, seed) for job in ("agents", "images") for seed in range(3)
    }
    assert len(runs) == 3 * sum(
        r.engine == "mixed" and r.job in ("agents", "images") for r in paper.TABLES["real"]()
    )


@pytest.mark.parametrize(("ours", "code"), [(100.0, 0), (102.0, 1)])
def test_some_jobs_are_held_to_the_bar_of_the_worst_and_to_no_mean(ours, code, tmp_path, monkeypatch):
    wanted = paper._wanted(paper._parser().parse_args("real --engine mixed --job agents".split()))
    rows = [
        {
            **asdict(run),
            "seconds": ours if run.policy == "blend" else 100.0,
            "bound_share": 0.9,
            "commit": "abc",
        }
        for run in wanted
    ]
    (tmp_path / "real.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["real", "--engine", "mixed", "--job", "agents", "--report", "--check", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["benchmark.paper", *flags])
    assert paper.main() == code
