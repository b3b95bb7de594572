"""SGLang's scheduler with several tokens a step, and what the planner sees of it."""

import pytest

from sglang.srt.blend.core.step import step
from sglang.srt.blend.core.step.speculation import Speculation
from speculation import DRAFTS, speculating

BLEND = {"schedule_policy": "blend", "blend_hardware": "a100-80gb"}
MODES = {"plain": {}, "overlap": {"disable_overlap_schedule": False}}


def _startup():
    from sglang.srt.blend.runtime import startup  # once the platform is known

    return startup


def submit(lone, count=12, output=60):
    for i in range(count):
        lone.submit([i + 3] * 20, output, max_new_tokens=2 * output)


@pytest.mark.parametrize("mode", MODES)
def test_the_planner_learns_how_many_tokens_a_step_yields(tiny_llama, mode):
    with speculating(tiny_llama, accepts=3, **BLEND, **MODES[mode]) as lone:
        submit(lone)
        lone.run()
        lone.check_leaks()
        speculation = lone.scheduler.blend.planner.speculation
        assert (speculation.draft_tokens, speculation.ahead) == (DRAFTS, 2 * DRAFTS)
        assert 2.5 < speculation.accept_length < 3


def retractions(checkpoint, **server_args):
    """How often a tight pool of known lengths loses KV; everybody is answered in full all the same."""
    with speculating(checkpoint, accepts=3, max_total_tokens=400, **BLEND, **server_args) as lone:
        for i in range(40):
            lone.submit([i + 3] * 8, 12, sampling={"ignore_eos": True})
        lone.run()
        lone.check_leaks()
        assert {reason["type"] for reason in lone.finished.values()} == {"length"}
        assert [len(tokens) for tokens in lone.outputs.values()] == [12] * 40
        return lone.scheduler.blend.pool.retractions


@pytest.mark.parametrize("mode", MODES)
def test_nobody_of_known_length_is_retracted_for_drafts(tiny_llama, monkeypatch, mode):
    """A planner that does not know of them admits more than fit."""
    monkeypatch.setattr(step, "PREEMPTION_GAIN", float("inf"))
    assert retractions(tiny_llama, **MODES[mode]) == 0
    monkeypatch.setattr(_startup(), "speculation_of", lambda _scheduler: Speculation())
    assert retractions(tiny_llama, **MODES[mode]) > 0


def test_nobody_is_aborted_in_a_tight_pool_of_unknown_lengths(tiny_llama):
    with speculating(tiny_llama, accepts=2, max_total_tokens=400, chunked_prefill_size=32, **BLEND) as lone:
        for i in range(20):
            lone.submit([i + 3] * (10 + 13 * (i % 7)), 10 + 7 * (i % 9), max_new_tokens=120)
        lone.run()
        lone.check_leaks()
        assert {reason["type"] for reason in lone.finished.values()} == {"stop"}


def test_a_server_that_mixes_chunks_is_not_paced_under_speculation(tiny_llama):
    """A step that prefills yields one token of each request, so spreading prefill would undo speculation."""
    with speculating(tiny_llama, accepts=3, **BLEND) as lone:
        lone.scheduler.is_mixed_chunk = True  # for algorithms for which upstream allows it
        assert _startup().build(lone.scheduler).clock.engine == "alternating"
