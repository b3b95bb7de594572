"""Scaled-down workloads reach their targets on the machine they are built for, and fit its engines."""

from dataclasses import replace

import numpy as np
import pytest
from benchmark.offline.configurations import CONTEXT
from benchmark.offline.pool_file import check_lengths, read_pool, write_pool
from benchmark.offline.workloads import FOUR_TRACES, MEMORY_DENSITY, REQUESTS, SPECS, memory_trace, prepare

from cpu_machines import AMX, NO_AMX


@pytest.mark.parametrize("name", FOUR_TRACES)
def test_the_four_traces_have_the_papers_density_and_sharing(name):
    made = prepare(name, AMX)
    assert made.density == pytest.approx(made.target.density, rel=0.03)
    assert made.sharing == pytest.approx(made.target.sharing, abs=0.02)
    assert {1.4, 0.9} >= {made.target.density}


@pytest.mark.parametrize("cost", [AMX, NO_AMX])
@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_fits_every_engine(name, cost):
    pool = prepare(name, cost).workload
    assert (pool.prompt + pool.max_new_tokens).max() < CONTEXT


@pytest.mark.parametrize("scale", [0.05, 0.15, 0.3, 0.5, 2])
@pytest.mark.parametrize("name", REQUESTS)
def test_workloads_of_any_size_can_be_made(name, scale):
    made = prepare(name, AMX, scale=scale)
    assert len(made.workload) >= 16
    if made.target:
        assert made.density == pytest.approx(made.target.density, rel=0.15)


@pytest.mark.parametrize("cost", [AMX, NO_AMX])
@pytest.mark.parametrize("name", REQUESTS)
def test_lengths_scale_as_one(name, cost):
    whole, half = (prepare(name, cost, scale=0.5, length_scale=factor) for factor in (1.0, 0.5))
    assert len(half.workload) == pytest.approx(len(whole.workload), rel=0.3)
    assert half.sharing == pytest.approx(whole.sharing, abs=0.05)
    lengths = [made.workload.prompt.mean() for made in (whole, half)]
    assert lengths[1] == pytest.approx(lengths[0] / 2, rel=0.1)
    assert (half.workload.prompt + half.workload.max_new_tokens).max() < CONTEXT / 2
    assert half.workload.output.min() >= 1


def test_answers_are_long_enough_to_be_memory_intensive_and_no_longer():
    trace = memory_trace(AMX, SPECS["openvid"])
    mean = trace.prompt.mean, trace.output.mean
    assert AMX.density(*mean) <= MEMORY_DENSITY
    assert AMX.density(mean[0], mean[1] - 16) > MEMORY_DENSITY


def test_without_matrix_units_targets_are_scaled_together():
    first, second = (prepare(name, NO_AMX).target.density for name in ("trace1", "trace2"))
    assert first > 1.4
    assert first / second == pytest.approx(1.4 / 0.9)


def test_equal_seeds_give_equal_workloads_and_others_do_not():
    a, b, c = (prepare("trace1", AMX, scale=0.2, seed=seed).workload for seed in (0, 0, 1))
    assert np.array_equal(a.tokens, b.tokens)
    assert not np.array_equal(a.tokens, c.tokens)


def test_requests_of_a_trace_do_not_arrive_together():
    source = prepare("trace1", AMX).workload.source
    assert np.count_nonzero(np.diff(source)) > len(source) / 4


def test_an_unknown_workload_is_named():
    with pytest.raises(ValueError, match="'trace9': unknown; choose one of trace1"):
        prepare("trace9", AMX)


def test_a_pool_file_holds_the_workload(tmp_path):
    workload = prepare("classification", AMX, scale=0.1).workload
    write_pool(tmp_path / "pool.npz", workload)
    pool = read_pool(str(tmp_path / "pool.npz"))
    assert len(pool) == len(workload)
    assert all(prompt == workload.prompt_tokens(i).tolist() for i, prompt in enumerate(pool.prompts))
    assert np.array_equal(pool.output, workload.output)
    assert np.array_equal(pool.known, workload.known)
    check_lengths(pool, pool.output.tolist())
    with pytest.raises(RuntimeError, match="1 of 32 answers have a wrong length: request 0"):
        check_lengths(pool, [int(pool.output[0]) + 1, *pool.output[1:].tolist()])


def test_the_summary_says_how_far_memory_binds():
    made = prepare("trace1", AMX, scale=0.2)
    pool = made.workload
    expected = (len(pool.tokens) + int(pool.output.sum())) / 1000
    assert made.summary(1000)["demand"] == pytest.approx(expected, abs=0.05)
    assert replace(made, target=None).summary(1000)["target"] is None
