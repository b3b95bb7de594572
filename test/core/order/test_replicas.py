"""Requests reach the replica that owns their subtree, and later ones the one that holds their prefix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import llama_on_a100, random_pool
from sglang.srt.blend.core.order import replicas as module
from sglang.srt.blend.core.order.replicas import Replicas

PREFIX = 2000


def document(number: int) -> list[int]:
    return np.random.default_rng(number).integers(0, 30_000, PREFIX).tolist()


def prompt(number: int, question: int) -> np.ndarray:
    return np.array([*document(number), *range(40_000 + question * 40, 40_040 + question * 40)], np.int32)


def deal(replicas, prompts, output=50, **options):
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in prompts])])
    return replicas.deal(np.concatenate(prompts), offsets, np.full(len(prompts), output), **options)


def dealt(count=2, documents=8, questions=6):
    """Replicas that have a pool of questions about documents, and the owner of each document."""
    replicas = Replicas(llama_on_a100(), count)
    prompts = [prompt(number, question) for number in range(documents) for question in range(questions)]
    owner, shards = deal(replicas, prompts)
    return replicas, owner.reshape(documents, questions), shards


def test_a_pool_is_divided_by_whole_subtrees_of_equal_work():
    replicas, owner, shards = dealt()
    assert all(len(set(row)) == 1 for row in owner.tolist())
    assert np.bincount(owner[:, 0]).tolist() == [4, 4]
    assert shards.sharing_kept == 1.0
    assert replicas.loads[0] == pytest.approx(replicas.loads[1], rel=0.01)


def test_the_largest_part_goes_to_the_replica_with_least_to_do():
    replicas = Replicas(llama_on_a100(), 2)
    replicas.took(0, prompt(90, 0), 5000)
    owner, _ = deal(replicas, [prompt(0, 0), prompt(0, 1), prompt(1, 0)])
    assert owner.tolist() == [1, 1, 0]


def test_later_arrivals_join_the_replica_that_holds_their_prefix():
    replicas, owner, _ = dealt()
    for number, row in enumerate(owner.tolist()):
        assert replicas.join(prompt(number, 99), 50) == row[0]


def test_a_lead_that_could_not_be_made_up_is_not_extended():
    replicas, owner, _ = dealt()
    home = int(owner[0, 0])
    replicas.has(1 - home, 0)
    assert replicas.join(prompt(0, 99), 50) != home


def test_a_prefix_that_costs_more_than_the_lead_is_worth_waiting_for():
    replicas = Replicas(llama_on_a100(), 2)
    replicas.took(1, prompt(0, 0), 1)
    replicas.has(1, 0)
    replicas.took(1, prompt(7, 0)[:10], 1)  # as good as nothing to do
    assert replicas.join(prompt(0, 1), 50) == 1


def test_arrivals_without_a_pool_spread_unless_they_share():
    replicas = Replicas(llama_on_a100(), 4)
    assert {replicas.join(prompt(number, 0), 50) for number in range(4)} == {0, 1, 2, 3}


def test_namespaces_share_nothing():
    replicas, owner, _ = dealt()
    home = int(owner[0, 0])
    replicas.has(1 - home, replicas._open[1 - home] - 1)
    assert replicas.join(prompt(0, 99), 50) == home
    assert replicas.join(prompt(0, 98), 50, namespace=1) != home


def test_only_replicas_that_may_get_requests_get_some():
    replicas = Replicas(llama_on_a100(), 3)
    owner, _ = deal(replicas, [prompt(number, 0) for number in range(6)], among=(0, 2))
    assert set(owner.tolist()) == {0, 2}
    home = int(owner[0])
    assert replicas.join(prompt(0, 1), 50, among=[1]) == 1
    assert replicas.join(prompt(0, 2), 50, among=[1, 2 - home]) in (1, 2 - home)


def test_what_was_used_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(module, "_REMEMBERED", 100)
    replicas, *_ = dealt()
    assert len(replicas._holders) == 100


def test_no_replica_at_all_is_refused():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        Replicas(llama_on_a100(), 0)


@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 5), st.integers(1, 40))
def test_every_request_has_one_replica_and_every_load_is_accounted_for(seed, n, count, stretch):
    requests = random_pool(seed=seed, n=n, vocabulary=3, longest=8, stretch=stretch)
    replicas = Replicas(llama_on_a100(), count)
    owner, shards = replicas.deal(
        requests.tokens, requests.offsets, requests.output, namespace=requests.namespace
    )
    assert len(owner) == n
    assert all(0 <= replica < count for replica in owner.tolist())
    assert replicas.loads.sum() == pytest.approx(sum(part.work for part in shards.parts))
    before = replicas._open.sum()
    for i in range(n):
        tokens = requests.tokens[requests.offsets[i] : requests.offsets[i + 1]]
        assert 0 <= replicas.join(tokens, int(requests.output[i])) < count
    assert replicas._open.sum() == before + n
