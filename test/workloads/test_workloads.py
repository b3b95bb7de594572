"""Synthetic traces have the statistics they state, mixes hit their targets, loaders keep what files say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark.workloads import PAPER_TRACES, TRACES, ImpossibleMix, MixTarget, make_trace, synthesise
from benchmark.workloads.lengths import LengthDistribution
from benchmark.workloads.loaders import (
    load_lengths,
    load_mooncake,
    load_openai_batch,
    load_sglang_dataset,
    load_sharegpt,
)
from benchmark.workloads.traces import FRAME_TOKENS
from hypothesis import given
from hypothesis import strategies as st

from pools import llama_on_a100
from sglang.srt.blend.core.pool.workload import Workload, concatenate

COST = llama_on_a100()
# BlendServe Table 4.
SHARING = {"sharegpt": 0.02, "wildchat": 0.19, "azure": 0.01, "burstgpt": 0.02, "openvid": 0.0, "mmlu": 0.86}


def same(a: Workload, b: Workload) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("tokens", "offsets", "output", "max_new_tokens", "known", "source")
    )


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_has_the_stated_means_and_sharing(name):
    trace = make_trace(name, 2000)
    assert trace.prompt.mean() == pytest.approx(TRACES[name].prompt.mean, rel=0.01)
    assert trace.output.mean() == pytest.approx(TRACES[name].output.mean, rel=0.02)
    # 57 subjects pay for their prefix once, which 2,000 questions do not quite amortise.
    assert trace.statistics(COST).sharing == pytest.approx(SHARING[name], abs=0.03)


def test_traces_rank_by_density_as_in_the_paper():
    density = {name: make_trace(name, 2000).statistics(COST).density for name in TRACES}
    assert sorted(density, key=density.get) == [
        "openvid",
        "wildchat",
        "sharegpt",
        "burstgpt",
        "azure",
        "mmlu",
    ]


def test_videos_have_whole_frames_and_a_known_length():
    trace = make_trace("openvid", 300)
    assert np.all(trace.output % FRAME_TOKENS == 0)
    assert trace.known.all()
    assert np.array_equal(trace.output, trace.max_new_tokens)


@pytest.mark.parametrize("target", PAPER_TRACES)
def test_a_mix_of_8000_hits_the_papers_density_and_sharing(target):
    mix = synthesise(target, 8000, COST)
    reached = mix.statistics(COST)
    assert reached.density == pytest.approx(target.density, rel=0.01)
    assert reached.sharing == pytest.approx(target.sharing, abs=0.005)
    assert len(mix) == pytest.approx(8000, rel=0.15)


def test_other_compute_traces_reach_their_targets_too():
    for compute in ("azure", "sharegpt", "wildchat"):
        target = MixTarget(1.0, 0.25)
        reached = synthesise(target, 3000, COST, compute=compute).statistics(COST)
        assert reached.density == pytest.approx(target.density, rel=0.03)
        assert reached.sharing == pytest.approx(target.sharing, abs=0.01)


def test_equal_seeds_give_equal_workloads_and_others_do_not():
    target = MixTarget(1.0, 0.2)
    first, again, other = (synthesise(target, 1500, COST, seed=seed) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)


def test_an_impossible_target_is_refused_with_the_shares_it_would_take():
    with pytest.raises(ImpossibleMix, match=r"no mix of these traces.*openvid"):
        synthesise(MixTarget(500.0, 0.1), 1000, COST)
    with pytest.raises(ValueError, match="choose one of sharegpt"):
        make_trace("imagenet", 10)


@given(
    mean=st.floats(20, 3000),
    spread=st.floats(0, 1.5),
    seed=st.integers(0, 2**31),
)
def test_drawn_lengths_keep_mean_and_bounds(mean, spread, seed):
    lengths = LengthDistribution(mean, spread * mean, 4, 8192).draw(1000, np.random.default_rng(seed))
    assert lengths.min() >= 4
    assert lengths.max() <= 8192
    # Whole tokens, and all equal without spread.
    assert lengths.mean() == pytest.approx(mean, rel=0.03, abs=1)


def test_taking_and_concatenating_keep_every_prompt():
    mix = concatenate([make_trace("mmlu", 20), make_trace("burstgpt", 30)])
    order = np.random.default_rng(0).permutation(50)
    taken = mix.take(order)
    for place, request in enumerate(order):
        assert np.array_equal(taken.prompt_tokens(place), mix.prompt_tokens(request))
        assert taken.output[place] == mix.output[request]
    assert np.bincount(taken.source).tolist() == [20, 30]


def test_depth_first_order_keeps_equal_prefixes_together():
    mix = synthesise(MixTarget(1.0, 0.3), 1000, COST)
    prompts = [mix.prompt_tokens(int(request)).tolist() for request in mix.depth_first_order()]
    assert prompts == sorted(prompts)


def test_a_workload_whose_answers_exceed_their_cap_is_refused():
    trace = make_trace("mmlu", 5)
    with pytest.raises(ValueError, match="between 1 and max_new_tokens"):
        replace(trace, output=trace.output + 100)


# ---------------------------------------------------------------- files


def encode(text: str) -> list[int]:
    return list(text.encode())


def encode_chat(messages: list[dict[str, str]]) -> list[int]:
    return [1, *encode("".join(message["content"] for message in messages))]


def test_lengths_csv(tmp_path: Path):
    file = tmp_path / "code.csv"
    file.write_text("input_tokens,output_tokens\n30,4\n20,0\n10,7\n")
    loaded = load_lengths(file, limit=2)
    assert loaded.prompt.tolist() == [30, 20]
    assert loaded.output.tolist() == [4, 1]  # an answer has at least one token
    file.write_text("input_tokens,output_tokens\n30,4\nmany,2\n")
    with pytest.raises(ValueError, match=r"code.csv:3"):
        load_lengths(file)


def test_mooncake_blocks_share_tokens_by_hash(tmp_path: Path):
    file = tmp_path / "trace.jsonl"
    rows = [
        {"input_length": 1500, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"input_length": 1300, "output_length": 9, "hash_ids": [0, 1, 7]},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    loaded = load_mooncake(file)
    assert loaded.prompt.tolist() == [1500, 1300]
    assert loaded.statistics(COST).shared_tokens == 1024
    file.write_text(json.dumps({"input_length": 1500, "output_length": 5, "hash_ids": [0]}))
    with pytest.raises(ValueError, match=r"trace.jsonl:1: 1 blocks of 512"):
        load_mooncake(file)


def test_sharegpt_takes_the_first_exchange(tmp_path: Path):
    file = tmp_path / "chats.json"
    turns = [{"from": "human", "value": "abc"}, {"from": "gpt", "value": "hello"}, {"value": "more"}]
    file.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:1]}]))
    loaded = load_sharegpt(file, encode)
    assert loaded.prompt_tokens(0).tolist() == encode("abc")
    assert loaded.output.tolist() == [5]


def test_openai_batch_uses_the_caps_of_the_file(tmp_path: Path):
    file = tmp_path / "batch.jsonl"
    bodies = [
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
        {"prompt": "hello", "max_completion_tokens": 500},
    ]
    file.write_text("\n".join(json.dumps({"custom_id": str(i), "body": b}) for i, b in enumerate(bodies)))
    loaded = load_openai_batch(file, encode, encode_chat, output_tokens=100)
    assert loaded.prompt_tokens(0).tolist() == [1, *encode("hi")]
    assert loaded.output.tolist() == [3, 100]
    assert loaded.max_new_tokens.tolist() == [3, 500]
    file.write_text('{"body": {}}\n')
    with pytest.raises(ValueError, match=r"batch.jsonl:1: body has neither"):
        load_openai_batch(file, encode, encode_chat, output_tokens=100)


class WordTokenizer:
    """Tokens are words t0 to t99, which is all that SGLang's generated datasets ask of a tokenizer."""

    def get_vocab(self):
        return {f"t{i}": i for i in range(100)}

    def encode(self, text, **_):
        return [int(word[1:]) for word in text.split()]

    def decode(self, ids, **_):
        return " ".join(f"t{i}" for i in ids)


def test_sglang_benchmark_datasets_are_taken_by_their_flags(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # upstream keeps what it has generated there
    flags = (
        "--dataset-name generated-shared-prefix --gsp-num-groups 3 --gsp-prompts-per-group 4 "
        "--gsp-system-prompt-len 50 --gsp-question-len 10 --gsp-output-len 7 --seed 5"
    ).split()
    loaded = load_sglang_dataset(flags, WordTokenizer())
    assert loaded.prompt.tolist() == [60] * 12
    assert loaded.output.tolist() == [7] * 12
    starts = [tuple(loaded.tokens[i : i + 50].tolist()) for i in loaded.offsets[:-1]]
    assert sorted(starts.count(start) for start in set(starts)) == [4, 4, 4]
    again = load_sglang_dataset(flags, WordTokenizer())
    assert again.tokens.tolist() == loaded.tokens.tolist()
