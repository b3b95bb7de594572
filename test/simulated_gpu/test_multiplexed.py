"""The pdmux engine: SGLang's own loop must give the schedule that is worked out by hand here."""

from pathlib import Path

import pytest
from programs import run

from models import LLAMA_3_8B
from sglang.srt.blend.core.cost.hardware import load_hardware
from sglang.srt.blend.core.cost.model_shape import ModelShape
from sglang.srt.blend.core.cost.pdmux import PdmuxTimes
from sglang.srt.blend.core.cost.step_time import StepTimeModel, StepWork

PREFILL_SMS, DECODE_SMS, WHOLE = 68, 40, 108
TIMES = PdmuxTimes(StepTimeModel(ModelShape.from_config(LLAMA_3_8B), load_hardware("a100-80gb")))


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict:
    config = Path(tmp_path_factory.mktemp("pdmux")) / "pdmux.yaml"
    # 16 of the 32 layers of 1024 tokens are launched in a turn, 8 of those of 2048 tokens.
    lines = ("sm_group_num: 3", f"manual_divisions: [[{PREFILL_SMS}, {DECODE_SMS}, 0]]")
    config.write_text("\n".join((*lines, f"split_forward_token_budget: {16 * 1024}\n")))
    return run("multiplexed_program.py", str(config), platform="simulated_gpu")


def prefill(tokens: int) -> StepWork:
    return StepWork(prefill_tokens=tokens, prefill_pairs=tokens * (tokens + 1) / 2, finished_prefills=1)


def beside(work: StepWork, contexts: list[int], begin: float) -> tuple[float, list[int]]:
    """When a prefill batch admitted at `begin` ends, and the contexts of the rows beside it by then.

    Its first layers are launched when the CPU has prepared the turn. While a step decodes both are slower by
    the same factor; between steps prefill runs alone. It is seen to have ended when a step has.
    """
    load, now, left = TIMES.load(work, PREFILL_SMS), begin + TIMES.turn, None
    while True:
        rows = [context + 1 for context in contexts]
        step = TIMES.load(StepWork(decode_rows=len(rows), kv_tokens=sum(rows)), DECODE_SMS)
        slow = float(TIMES.slowdown(load, step))
        left = float(load.seconds) if left is None else left - TIMES.turn
        both = min(float(step.seconds), left)
        now += both * slow + float(step.seconds) - both
        left, contexts = left - both, rows
        if left <= 1e-12:
            return now, contexts
        now += TIMES.turn


def by_hand() -> list[float]:
    """When A (1024 in, 40 out), B (1024, 3) and C (2048, 1) end, which come together: a batch for each.

    A has the whole GPU. B passes its layers beside A's steps, begins to decode with its second token, and
    ends two steps into C's prefill. C ends with its prefill, having nothing to decode. A ends alone.
    """
    a_begins = TIMES.turn + float(TIMES.load(prefill(1024), WHOLE).seconds)
    now, (a,) = beside(prefill(1024), [1024], a_begins)
    load = TIMES.load(prefill(2048), PREFILL_SMS)
    now, left = now + TIMES.turn, float(load.seconds)
    for steps in range(1, 40):
        a += 1
        rows = [a, 1024 + steps] if steps <= 2 else [a]  # B's two steps
        step = TIMES.load(StepWork(decode_rows=len(rows), kv_tokens=sum(rows)), DECODE_SMS)
        both = min(float(step.seconds), left)
        now += both * float(TIMES.slowdown(load, step)) + float(step.seconds) - both
        left -= both
        if steps == 2:
            b_ends = now
        if left <= 1e-12:
            break
        now, left = now + TIMES.turn, left - TIMES.turn
    c_ends = now
    while a < 1024 + 39:
        a += 1
        now += TIMES.turn + float(TIMES.load(StepWork(decode_rows=1, kv_tokens=a), WHOLE).seconds)
    return [now, b_ends, c_ends]


def test_three_requests_end_when_a_hand_made_schedule_says(ran):
    expected = by_hand()
    assert ran["finished"] == pytest.approx(expected, rel=1e-6)
    assert ran["ended"] == pytest.approx(expected[0], rel=1e-6)


def test_turns_hold_all_work_and_all_time(ran):
    assert sum(ran["seconds"]) == pytest.approx(ran["ended"])
    assert sum(ran["prefill_tokens"]) == pytest.approx(1024 + 1024 + 2048)
    assert sum(ran["decode_rows"]) == 39 + 2
    assert max(ran["decode_rows"]) == 2
    assert sum(ran["kv_tokens"]) == sum(1024 + i for i in range(1, 40)) + 1025 + 1026
