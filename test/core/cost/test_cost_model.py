"""Densities against those that the paper publishes (Figure 2, Table 4)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import LLAMA_3_8B
from pools import llama_on_a100
from sglang.srt.blend.core.cost.cost_model import CostModel
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape

# trace, mean prompt, mean output, sharing, published density, tolerance
#
# The published density is that of all requests together, E[Comp] / E[Mem]; ours puts mean lengths into it.
# Comp is linear in the lengths (up to a small p^2), so means do. Mem is not: E[p d + d^2 / 2] exceeds
# its value at the means by the outputs' variance and the covariance of prompt and output, so we come out
# too dense by 1 + (var(d) / 2 + cov(p, d)) / (p d + d^2 / 2). See the tests below for what that implies.
TRACES = [
    ("Azure", 2508, 23, 0.01, 33.2, 0.07),
    ("MMLU", 804, 2, 0.86, 54.91, 0.03),
    # Without sharing. With the 0.19 of Table 4 it comes out 25% too low: means cannot tell which is meant.
    ("WildChat", 496, 510, 0.0, 2.13, 0.08),
    # Means are 62% and 38% too dense: see test_spread_explains_why_means_are_too_dense.
    ("BurstGPT", 244, 27, 0.02, 17.78, 0.65),
    ("LIMO", 109, 7617, 0.0, 0.14, 0.4),
    # Normalised to a mean of 16K output tokens, as the paper's workloads are; the figure is Figure 6's.
    ("OpenVid 16K", 121, 16_000, 0.0, 0.096, 0.05),
    # Not explained: with its own mean output it is 32% too LOW, and spread would lower it further. The
    # published 0.05 is rounded, which covers 10%; it corresponds to a mean output of about 30K tokens.
    ("OpenVid", 121, 43_726, 0.0, 0.05, 0.35),
]


@pytest.mark.parametrize(("prompt", "output", "sharing", "published", "tolerance"), [t[1:] for t in TRACES])
def test_density_from_mean_lengths_is_near_the_published(prompt, output, sharing, published, tolerance):
    density = llama_on_a100().density(prompt, output, sharing=sharing)
    assert density == pytest.approx(published, rel=tolerance)


def test_traces_are_ranked_as_published():
    dense = [t for t in TRACES if t[0] != "OpenVid 16K"]
    ours = [float(llama_on_a100().density(p, d, sharing=s)) for _, p, d, s, _, _ in dense]
    assert np.argsort(ours).tolist() == np.argsort([t[4] for t in dense]).tolist()


@pytest.mark.parametrize(
    ("prompt", "output", "sharing", "published", "plausible"),
    # Of outputs: production chat and code traces have coefficients of variation of 1 to 4 (a log-normal
    # with sigma 1 has 1.3), reasoning traces of one task below 1.
    [(244, 27, 0.02, 17.78, (1.0, 5.0)), (109, 7617, 0.0, 0.14, (0.4, 1.0))],
)
def test_spread_explains_why_means_are_too_dense(prompt, output, sharing, published, plausible):
    """The coefficient of variation of outputs that makes up the difference, uncorrelated to prompts."""
    excess = llama_on_a100().density(prompt, output, sharing=sharing) / published - 1
    variation = np.sqrt(2 * excess * (prompt * output + output**2 / 2)) / output
    assert plausible[0] < variation < plausible[1]


def test_density_of_log_normal_lengths_is_below_that_of_their_means():
    rng = np.random.default_rng(0)
    cost = llama_on_a100()
    output = rng.lognormal(np.log(7617) - 0.57**2 / 2, 0.57, 20_000)
    pooled = cost.comp(109, output).sum() / cost.mem(109, output).sum()
    assert pooled == pytest.approx(0.14, rel=0.05)
    assert pooled < cost.density(109, 7617)


@pytest.mark.parametrize(("batch", "published"), [(512, 1.239), (768, 1.859), (1024, 2.478)])
def test_attention_estimate_of_table_1(batch, published):
    """One decode step of one layer at 1024 tokens: the paper estimates bytes over 85% of bandwidth."""
    hardware = load_hardware("a100-80gb")
    seconds = batch * llama_on_a100().mem(1023, 1) / 32 / hardware.bandwidth_efficiency
    assert seconds * 1e3 == pytest.approx(published, rel=0.001)


lengths = st.integers(0, 50_000)


@given(lengths, st.integers(0, 2000))
def test_memory_is_the_sum_over_decode_steps(prompt, output):
    shape = llama_on_a100().shape
    steps = sum(prompt + i for i in range(1, output + 1))
    expected = steps * shape.kv_bytes * shape.layers / load_hardware("a100-80gb").bandwidth
    assert llama_on_a100().mem(prompt, output) == pytest.approx(expected)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 400), st.integers(0, 32))
def test_window_layers_read_at_most_the_window(prompt, output, window, window_layers):
    config = {**LLAMA_3_8B, "sliding_window": window, "max_window_layers": 32 - window_layers}
    cost = CostModel(ModelShape.from_config(config), load_hardware("a100-80gb"))
    full = sum(prompt + i for i in range(1, output + 1))
    capped = sum(min(prompt + i, window) for i in range(1, output + 1))
    expected = ((32 - window_layers) * full + window_layers * capped) * 4096 / 2.039e12
    assert cost.mem(prompt, output) == pytest.approx(expected)


@given(lengths, lengths)
def test_comp_is_the_formula(prompt, output):
    shape = llama_on_a100().shape
    expected = (2 * (prompt + output) * shape.gemm_params + 4 * prompt**2 * 4096 * 32) / 312e12
    assert llama_on_a100().comp(prompt, output) == pytest.approx(expected)


def test_a_pass_reads_the_weights_once():
    cost = llama_on_a100()
    assert cost.weight_time == pytest.approx(cost.shape.weight_bytes / load_hardware("a100-80gb").bandwidth)


def test_request_that_decodes_nothing_is_infinitely_dense():
    assert np.isinf(llama_on_a100().density(10, 0))


def test_tensor_parallelism_leaves_density_alone():
    cost = CostModel(ModelShape.from_config(LLAMA_3_8B, tensor_parallel=4), load_hardware("a100-80gb"))
    assert cost.density(500, 500) == pytest.approx(llama_on_a100().density(500, 500))
