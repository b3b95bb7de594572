"""The evaluation's tables: what is run, what is simulated once, and what the report says of it."""

import json
import subprocess
from dataclasses import asdict

import numpy as np
import pytest
from benchmark import provenance
from benchmark.paper import __main__ as paper
from benchmark.paper import data_parallel, report, resources, time_model
from benchmark.paper.compare import TOLD, Run, batches, cost_model, wrong_by
from benchmark.paper.orders import batchllm_order, density_order
from benchmark.paper.pictures import draw
from benchmark.paper.published import against_paper
from benchmark.paper.tables import TABLES
from benchmark.workloads import synthesis
from benchmark.workloads.traces import make_trace, with_video_tokens

from sglang.batch.plan.timeline import Timeline
from sglang.srt.blend.core.pool.output_length import LengthEstimator
from sglang.srt.blend.core.pool.workload import Workload


def record(policy, engine, seconds, **changed):
    run = {
        "trace": 1,
        "density": 0.0,
        "sharing": 0.0,
        "compute": "burstgpt",
        "model": "llama-3-8b",
        "hardware": "a100-80gb",
        "requests": 10,
        "video_tokens": 16,
        "seed": 0,
        "variant": "",
        "optimum_share": 0.9,
        "bound_share": 0.96,
        "sharing_reached": 0.5,
        "sharing_possible": 0.5,
    }
    return {**run, "policy": policy, "engine": engine, "seconds": seconds, **changed}


def fast(seconds):
    return [
        record("dfs", "mixed", 16.0),
        record("dfs", "overlapped", 13.0),
        record("blend", "mixed", 14.0),
        record("blend", "overlapped", seconds),
    ]


@pytest.mark.parametrize("table", TABLES)
def test_no_run_is_listed_twice(table):
    runs = TABLES[table]()
    assert len(set(runs)) == len(runs) > 0


@pytest.mark.parametrize("table", ["grid", "variance", "azure"])
def test_traces_mix_to_every_point_of_a_grid(table):
    runs = TABLES[table]()
    made = {}
    for run in runs:
        specs, cost = with_video_tokens(run.video_tokens), cost_model(run)
        for name in (run.compute, "openvid", "mmlu"):
            if name not in made:
                made[name] = synthesis._averages(make_trace(name, 2000, specs=specs), cost)
        names = (run.compute, "openvid", "mmlu")
        shares = synthesis._shares(np.array([made[name] for name in names]), run.target, names)
        assert shares.sum() == pytest.approx(1.0)


def test_one_simulation_answers_for_both_engines_unless_the_policy_looks_at_them():
    runs = [Run(1, policy, engine, 10) for policy in ("dfs", "blend") for engine in ("mixed", "overlapped")]
    assert sorted(map(len, batches(runs))) == [1, 1, 2]
    alternating = [Run(1, "dfs", engine, 10) for engine in ("alternating", "mixed")]
    assert sorted(map(len, batches(alternating))) == [1, 1]
    assert [group[0].policy for group in batches(runs)] == ["blend", "blend", "dfs"]  # the longest first


def test_a_missed_bar_is_named():
    assert report.missed(report.summary(report.lines(fast(10.0)))) == []
    assert report.missed(report.summary(report.lines(fast(10.4)))) == [
        "blend overlapped over dfs mixed, best"
    ]


def test_scaled_down_traces_have_a_bar_of_their_own_for_memory():
    table = [{**run, "bound_share": 0.94} for run in fast(10.0)]
    figures = report.summary(report.lines(table))
    assert report.missed(figures) == ["share of what memory allows, mean"]
    assert report.missed(figures, report.SCALED_BARS) == []
    figures["share of what memory allows, mean"] = 0.92
    assert report.missed(figures, report.SCALED_BARS) == ["share of what memory allows, mean"]
    assert report.missed(figures, report.QUICK_BARS) == []
    figures["share of what memory allows, mean"] = 0.89
    assert report.missed(figures, report.QUICK_BARS) == ["share of what memory allows, mean"]


def test_tables_without_a_bar_miss_none():
    figures = report.summary(report.lines(fast(20.0)))
    assert report.missed(figures, {}) == []
    assert report.missed(figures, report.VARIANCE_BARS) == ["blend over dfs, overlapped, mean"]
    assert not any(line.endswith("missed") for line in report.text(fast(20.0), {}).splitlines())


def test_speed_is_told_of_every_schedule():
    lines = report.text([*fast(10.0), record("lof", "mixed", 32.0)]).splitlines()
    assert any(line.startswith("lof, mixed") and line.endswith("0.500x") for line in lines)


def test_a_planner_that_was_told_of_another_gpu_may_be_three_percent_slower_once_it_knows():
    table = [
        *fast(10.0),
        record("blend", "overlapped", 10.2, variant="told h100"),
        record("blend", "mixed", 14.6, variant="told h100"),
        record("blend", "overlapped", 20.0, variant="told h100, not measured"),
    ]
    assert report.slowed(table, TOLD) == ["told h100, mixed"]


def test_ablations_are_told_as_shares_of_blends_speed():
    table = [*fast(10.0), record("blend", "overlapped", 12.5, variant="no split")]
    assert report.ablations(table) == {"no split": {"#1": 0.8}}
    assert any(
        line.startswith("no split") and line.endswith("0.800x") for line in report.text(table).splitlines()
    )


def grid_point(density, sharing, gain):
    mix = {"trace": 0, "density": density, "sharing": sharing}
    return [
        record("dfs", "overlapped", 10.0 * gain, **mix),
        record("blend", "overlapped", 10.0, **mix),
    ]


def test_every_kind_of_table_has_a_picture(tmp_path):
    grid = [run for i in range(20) for run in grid_point(0.8 + 0.05 * (i % 5), 0.1 * (i // 5), 1.2)]
    ablation = [*fast(10.0), record("blend", "overlapped", 12.5, variant="no split")]
    every = [*fast(10.0), *(record("lof", engine, 9.0) for engine in ("mixed", "overlapped"))]
    for name, table in {"grid": grid, "ablations": ablation, "traces": every, "headline": fast(10.0)}.items():
        draw(tmp_path / f"{name}.png", table)
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    draw(tmp_path / "nothing.png", [record("blend", "mixed", 1.0)])
    assert not (tmp_path / "nothing.png").exists()


def test_the_papers_figures_stand_beside_ours():
    points = [*grid_point(0.8, 0.05, 1.1), *grid_point(1.4, 0.05, 1.3)]
    [(figure, paper, here)] = against_paper("grid", points)
    assert (figure, here) == ("blend over dfs, overlapped", "1.10x to 1.30x, mean 1.200x")
    assert "1.225x" in paper
    assert against_paper("lpm", points) == []
    runs = [
        record(policy, "overlapped", seconds, trace=trace, sharing_reached=0.1)
        for policy, seconds in (("random", 13.0), ("blend", 10.0))
        for trace in (1, 2)
    ]
    assert [row[2] for row in against_paper("traces", runs)] == ["1.30x", "20% to 20%"]


def test_a_table_takes_finished_runs_from_another_of_the_same_commit(tmp_path):
    runs = [Run(trace, "blend", "mixed", 10) for trace in (1, 2, 3)]
    rows = [{**asdict(run), "commit": commit} for run, commit in zip(runs, "aab", strict=True)]
    (tmp_path / "quick.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert paper._finished(tmp_path, "traces", runs, "a") == rows[:2]
    assert paper._finished(tmp_path, "traces", runs, None) == rows
    assert paper._finished(tmp_path, "quick", runs[:1], "a") == rows[:2]  # nothing of its own is dropped


def test_runs_of_uncommitted_changes_are_made_again(tmp_path):
    run = Run(1, "blend", "mixed", 10)
    (tmp_path / "quick.jsonl").write_text(json.dumps({**asdict(run), "commit": "a-dirty"}) + "\n")
    assert paper._finished(tmp_path, "quick", [run], "a-dirty") == []
    assert len(paper._finished(tmp_path, "quick", [run], None)) == 1


def test_replicas_of_another_commit_are_made_again(tmp_path):
    file = tmp_path / "data_parallel.jsonl"
    assert data_parallel.finished(file, "a") == []
    file.write_text("".join(json.dumps({"commit": code}) + "\n" for code in ("a", "b", "a-dirty")))
    assert data_parallel.finished(file, "a") == [{"commit": "a"}]
    assert data_parallel.finished(file, "a-dirty") == []


def test_a_commit_is_dirty_when_anything_but_results_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    assert provenance.commit() == ""
    for name in ("code.py", "benchmark/results/table.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (("init", "--quiet"), ("add", "."), (*author, "commit", "--quiet", "-m", "test")):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    clean = provenance.commit()
    (tmp_path / "benchmark/results/table.csv").write_text("2")
    assert provenance.commit() == clean != ""
    (tmp_path / "code.py").write_text("2")
    assert provenance.commit() == clean + provenance.DIRTY


def test_wrong_estimates_are_so_many_times_as_far_from_the_end_within_the_cap():
    estimator, cap, generated = LengthEstimator(), np.array([4096, 300, 4096]), np.array([0, 0, 500])
    group = estimator.newcomers(cap, hint=np.zeros(3))
    right = estimator.expected(group, generated, cap)
    wrong = wrong_by(4.0)(estimator, group, generated, cap)
    assert wrong == pytest.approx(np.minimum(generated + 4.0 * (right - generated), cap))
    assert wrong[1] == 300 < wrong[0]


def workload_of(prompts, output):
    """Prompts as arrays of tokens, known output lengths."""
    output = np.array(output, np.int32)
    return Workload(
        tokens=np.concatenate(prompts).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])]),
        output=output,
        max_new_tokens=output,
        known=np.ones(len(prompts), np.bool_),
        source=np.zeros(len(prompts), np.int16),
        names=("test",),
    )


def test_the_density_order_begins_with_what_decodes_least():
    workload = workload_of(np.arange(40).reshape(4, 10), [50, 1, 400, 5])
    assert density_order(workload, cost_model(Run(1, "any", "mixed", 1))).tolist() == [1, 3, 0, 2]


def test_batchllm_takes_groups_of_long_answers_first():
    prefix = np.arange(40)
    prompts = [np.append(prefix, 1), np.array([90, 1]), np.append(prefix, 2), np.array([90, 2])]
    workload = workload_of(prompts, [9, 100, 9, 200])
    assert batchllm_order(workload, cost_model(Run(1, "any", "mixed", 1))).tolist() == [3, 1, 0, 2]


def test_use_over_time_is_a_table_and_a_picture(tmp_path):
    run, line = Run(2, "blend", "overlapped", 10), Timeline(0.5, (0.6, 0.4), (0.2, 0.9))
    rows = list(resources.records(run, line))
    uses = [(row["seconds"], row["compute"], row["memory"]) for row in rows]
    assert uses == [(0, 0.6, 0.2), (0.5, 0.4, 0.9)]
    assert {(row["trace"], row["policy"], row["engine"]) for row in rows} == {(2, "blend", "overlapped")}
    resources.draw(tmp_path / "use.png", [(run, line), (run, line)])
    assert (tmp_path / "use.png").stat().st_size > 0


@pytest.fixture(scope="module")
def predictions():
    return [*time_model.held_back(), *time_model.table_1()]


def test_held_back_rows_are_predicted_to_4_percent_on_average_and_6_in_every_series(predictions):
    errors = time_model.series_errors([p for p in predictions if p.source == time_model.HELD_BACK])
    assert len(errors) == 28
    assert np.mean([np.mean(e) for e in errors.values()]) < 0.04
    assert max(np.mean(e) for e in errors.values()) < 0.06


def test_table_1_is_predicted_to_4_percent_on_average(predictions):
    rows = [p for p in predictions if p.source == time_model.PAPER]
    assert np.mean([p.error for p in rows]) < 0.042
    # The paper's GEMMs at 512 and 1024 rows differ by 8.6% from the profile's own measurement.
    assert max(p.error for p in rows if p.kind == "GEMM") < 0.09
    assert max(p.error for p in rows if p.kind != "GEMM") < 0.03  # not used in the fit


@pytest.mark.parametrize("bar", [0.06, 0.03])
def test_the_time_models_report_fails_when_its_bar_is_missed(monkeypatch, tmp_path, capsys, bar):
    """Table 1 is predicted to 3.8%, held-back rows to 2.7%."""
    monkeypatch.setattr("sys.argv", ["time_model", "--out", str(tmp_path)])
    monkeypatch.setattr(time_model, "BAR", bar)
    with pytest.raises(SystemExit) as end:
        time_model.main()
    assert end.value.code == (bar == 0.03)
    assert capsys.readouterr().out.count("missed") == end.value.code
    assert len((tmp_path / "time_model.csv").read_text().splitlines()) == 1120 + 6 + 1
    assert (tmp_path / "time_model.png").stat().st_size > 0


@pytest.mark.parametrize("module", [data_parallel, resources])
@pytest.mark.parametrize("argument", ["--requests=0", "--video-tokens=many", "--jobs=-1"])
def test_bad_numbers_are_refused_before_anything_is_simulated(monkeypatch, capsys, module, argument):
    monkeypatch.setattr("sys.argv", ["table", argument])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 2
    assert "whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("module", [data_parallel, resources])
def test_a_mix_that_cannot_be_ends_with_what_is_wrong(monkeypatch, tmp_path, module):
    arguments = ["--requests=300", "--video-tokens=64", "--trace=1", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["table", *arguments])
    with pytest.raises(SystemExit, match="error: density 1.4 with sharing 0.35: no mix"):
        module.main()


def test_a_csv_holds_records_that_lack_later_columns(tmp_path):
    report.write_csv(tmp_path / "t.csv", [{"trace": 1}, {"trace": 0, "job": "agents"}])
    assert (tmp_path / "t.csv").read_text().split() == ["trace,job", "1,", "0,agents"]
