"""Drawing tokens without looking at the whole vocabulary."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.hardware_backend.portable_cpu import fused_ops, kernel_registration
from sglang.srt.hardware_backend.portable_cpu.sampler import PortableSampler, draw, filter_probs
from sglang.srt.layers import sampler as upstream

VOCABULARY = 40
EVERYTHING = 1 << 30  # upstream's "no top-k"


def reference(probs: torch.Tensor, top_k: int, top_p: float, min_p: float) -> list[float]:
    """Token by token what stays of one row, as weights by token."""
    kept, before = [0.0] * len(probs), 0.0
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    for rank, token in enumerate(order):
        if rank < top_k and before <= top_p and probs[token] >= min_p * probs[order[0]]:
            kept[token] = float(probs[token])
        before += float(probs[token])
    return kept


limits = st.tuples(
    st.sampled_from([1, 2, 7, 39, EVERYTHING]),
    st.sampled_from([0.05, 0.5, 0.93, 1.0]),
    st.sampled_from([0.0, 0.03, 0.6, 1.0]),
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.lists(limits, min_size=1, max_size=4),
    st.sampled_from([0.1, 1.0, 4.0]),
    st.integers(0, 2**16),
    st.sampled_from([(), (1,), (8,), (2, 30), (40, 256)]),
)
def test_filtered_as_token_by_token(rows, spread, seed, candidates):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(spread * torch.randn(len(rows), VOCABULARY, generator=generator), dim=1)
    top_ks, top_ps, min_ps = (torch.tensor(column) for column in zip(*rows, strict=True))
    weights, tokens = filter_probs(probs, top_ks, top_ps, min_ps, candidates)
    for row, (top_k, top_p, min_p) in enumerate(rows):
        by_token = [0.0] * VOCABULARY
        for token, weight in zip(tokens[row].tolist(), weights[row].tolist(), strict=True):
            by_token[token] = weight
        # Rows sum to 1 but for rounding, and top-p 1 may cut what lies beyond that or not.
        assert by_token == pytest.approx(reference(probs[row].double(), top_k, top_p, min_p), abs=1e-6)


def test_the_vocabulary_is_sorted_only_where_needed():
    peaked = torch.softmax(torch.arange(VOCABULARY, 0.0, -1.0), dim=0).unsqueeze(0)
    flat = torch.full((1, VOCABULARY), 1 / VOCABULARY)
    top_k, top_p, min_p = torch.tensor([EVERYTHING]), torch.tensor([0.9]), torch.tensor([0.0])
    assert filter_probs(peaked, top_k, top_p, min_p, (4, 8))[0].shape == (1, 4)
    assert filter_probs(flat, top_k, top_p, min_p, (4, 8))[0].shape == (1, VOCABULARY)
    assert filter_probs(flat, torch.tensor([5]), top_p, min_p, (4, 8))[0].shape == (1, 8)


def test_drawn_in_proportion_to_the_weights():
    torch.manual_seed(0)
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.5, 0.0])
    drawn = draw(weights.expand(200_000, -1))
    assert drawn.dtype == torch.int32
    shares = torch.bincount(drawn, minlength=6) / 200_000
    assert shares[weights == 0].tolist() == [0.0] * 3
    assert torch.allclose(shares, weights / weights.sum(), atol=0.005)


@pytest.mark.parametrize("columns", [256, 257, 1000, 1024])
def test_many_columns_are_drawn_in_proportion_too(columns):
    torch.manual_seed(0)
    weights = torch.rand(columns)
    weights[::3] = 0.0
    drawn = torch.bincount(draw(weights.expand(100_000, -1)), minlength=columns) / 100_000
    assert not drawn[weights == 0].any()
    # By chance sqrt(2 * 682 / (pi * 100,000)), 0.07, for the 682 weights of 1,024 columns.
    assert (drawn - weights / weights.sum()).abs().sum() < 0.12


@pytest.mark.parametrize("column", [0, 1, 2, 10, 255])
def test_small_weights_behind_large_sums_are_told_apart(column, monkeypatch):
    """Running sums in float32 would be the same for several of them."""
    weights = torch.tensor([[1.0] + [2e-8] * 255])
    sums = weights.double().cumsum(1)
    middle = sums[0, column] - weights[0, column].double() / 2
    monkeypatch.setattr(torch, "rand", lambda *_, **__: (1.0 - middle / sums[0, -1]).reshape(1, 1))
    assert draw(weights).tolist() == [column]


def test_not_a_number_stays_in_the_vocabulary():
    assert 0 <= int(draw(torch.full((1, 5), float("nan")))) < 5


def sample(**info: object) -> torch.Tensor:
    """Through the sampler, three rows whose most likely token is 7."""
    probs = torch.full((3, VOCABULARY), 0.01)
    probs[:, 7] = 0.61
    return PortableSampler._sample_from_probs(
        object.__new__(PortableSampler),
        probs,
        SimpleNamespace(
            **{
                "sampling_seed": None,
                "sampling_mask_batch_indices": None,
                "top_ks": torch.full((3,), EVERYTHING),
                "top_ps": torch.full((3,), 0.5),
                "min_ps": torch.zeros(3),
                **info,
            }
        ),
        torch.zeros(3),
        simple_sampling_case=False,
    )[0]


@pytest.mark.parametrize("asked_for", ["sampling_seed", "sampling_mask_batch_indices"])
def test_seeds_and_masks_are_upstreams(asked_for, monkeypatch):
    assert sample().tolist() == [7, 7, 7]
    monkeypatch.setattr(upstream.Sampler, "_sample_from_probs", lambda *_: ("upstream's", None))
    assert sample(**{asked_for: torch.zeros(3)}) == "upstream's"


def test_registered_with_the_kernels(monkeypatch):
    factories: dict[str, object] = {}
    monkeypatch.setattr(upstream, "_CUSTOM_SAMPLER_FACTORIES", factories)
    monkeypatch.setattr(kernel_registration, "install", lambda _: None)
    monkeypatch.setattr(fused_ops, "register_fused_ops", lambda _: None)
    kernel_registration.register_kernels("portable_cpu")
    assert factories == {"pytorch": PortableSampler}
