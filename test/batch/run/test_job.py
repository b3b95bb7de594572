"""The life of a batch: order, limits, the barrier, what an interruption leaves behind."""

import asyncio
import json
from typing import Any

import pytest
from stand_ins import FakeAnswerer, FakeBarrier, line, work
from stand_ins import job as make_job

from sglang.batch.run.job import BatchJob


def run(job: BatchJob, lines: list[bytes]) -> None:
    asyncio.run(job.run(work(lines)))


def ids(written: list[bytes]) -> list[Any]:
    return [json.loads(record)["custom_id"] for record in written]


def test_a_record_is_written_as_soon_as_its_request_is_done() -> None:
    written: list[bytes] = []
    answerer = FakeAnswerer(seconds={"slow": 0.2, "quick": 0.0, "middle": 0.1})
    run(make_job(answerer, written.append, pool=8), [line("slow"), line("quick"), line("middle")])
    assert ids(written) == ["quick", "middle", "slow"]


def test_no_more_than_the_pool_is_in_flight_and_all_are_answered() -> None:
    written: list[bytes] = []
    answerer = FakeAnswerer(seconds={str(i): 0.001 for i in range(200)})
    job = make_job(answerer, written.append, pool=5)
    run(job, [line(str(i)) for i in range(200)])
    assert answerer.most_running == 5
    assert sorted(ids(written), key=int) == [str(i) for i in range(200)]
    assert job.tally.answered == 200


def test_lines_are_read_only_as_fast_as_requests_finish() -> None:
    read = 0

    def lines():
        nonlocal read
        for number in range(100):
            read += 1
            yield line(str(number))

    furthest_ahead = written = 0

    def write(record: bytes) -> None:
        nonlocal furthest_ahead, written
        written += 1
        furthest_ahead = max(furthest_ahead, read - written)

    asyncio.run(make_job(FakeAnswerer(), write, pool=4).run(work(lines())))
    assert furthest_ahead <= 6


def test_the_first_of_two_lines_with_one_custom_id_is_answered() -> None:
    written: list[bytes] = []
    run(make_job(FakeAnswerer(), written.append, pool=2), [line("a"), line("b"), line("a")])
    records = [json.loads(record) for record in written]
    assert [record["custom_id"] for record in records if record["error"] is None] == ["a", "b"]
    (error,) = [record["error"] for record in records if record["error"] is not None]
    assert (error["code"], error["line"]) == ("duplicate_custom_id", 3)


def test_one_request_that_raises_costs_no_other_its_answer() -> None:
    written: list[bytes] = []
    job = make_job(FakeAnswerer(raises={"bad"}), written.append, pool=2)
    run(job, [line("a"), line("bad"), line("c")])
    errors = {record["custom_id"]: record["error"] for record in map(json.loads, written)}
    assert errors["a"] is None
    assert errors["c"] is None
    assert errors["bad"]["message"] == "RuntimeError: cannot run bad"
    assert errors["bad"]["line"] == 2


def test_blank_lines_and_a_byte_order_mark_are_no_requests_but_count_as_lines_of_the_file() -> None:
    written: list[bytes] = []
    job = make_job(FakeAnswerer(), written.append, pool=2)
    run(job, [b"\xef\xbb\xbf" + line("a"), b"\n", b"  \r\n", b"oops\n"])
    assert job.tally.done == 2
    errors = {record["custom_id"]: record["error"] for record in map(json.loads, written)}
    assert errors["a"] is None
    assert errors[None]["line"] == 4


def test_the_tally_adds_up_tokens_and_failures_by_code() -> None:
    job = make_job(FakeAnswerer(), lambda record: None, pool=4)
    run(job, [line("a"), line("b"), line("refused"), b"oops\n"])
    tally = job.tally
    assert (tally.answered, tally.failed, tally.done) == (2, 2, 4)
    assert tally.codes == {"BadRequestError": 1, "invalid_json_line": 1}
    assert (tally.prompt_tokens, tally.cached_tokens) == (20, 8)
    assert (tally.completion_tokens, tally.reasoning_tokens) == (4, 2)
    assert tally.tokens_per_second == pytest.approx(24 / tally.seconds)


def test_the_barrier_opens_once_the_whole_file_is_submitted() -> None:
    barrier = FakeBarrier()
    answerer = FakeAnswerer(seconds=dict.fromkeys("abc", 0.05))
    run(make_job(answerer, lambda record: None, pool=8, barrier=barrier), [line(x) for x in "abc"])
    assert barrier.calls[:3] == ["close", "settle", "open"]
    assert len(barrier.settled) == 3


def test_the_barrier_opens_when_the_pool_is_full_and_only_then() -> None:
    barrier = FakeBarrier()
    answerer = FakeAnswerer(seconds={str(i): 0.01 for i in range(20)})
    run(make_job(answerer, lambda record: None, pool=6, barrier=barrier), [line(str(i)) for i in range(20)])
    assert barrier.calls.count("settle") == 1
    assert len(barrier.settled) == 6


def test_the_barrier_is_opened_even_if_the_job_fails() -> None:
    barrier = FakeBarrier()

    def full_disk(record: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ExceptionGroup) as caught:
        run(make_job(FakeAnswerer(), full_disk, pool=2, barrier=barrier), [line("a"), line("b")])
    assert caught.group_contains(OSError)
    assert barrier.calls[-1] == "open"


def test_a_cancelled_job_cancels_its_requests_and_leaves_whole_records() -> None:
    written: list[bytes] = []
    answerer = FakeAnswerer(seconds={"slow-1": 60, "slow-2": 60})
    job = make_job(answerer, written.append, pool=8)

    async def interrupted() -> None:
        task = asyncio.ensure_future(job.run(work([line("quick"), line("slow-1"), line("slow-2")])))
        while not written:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert ids(written) == ["quick"]
    assert sorted(answerer.cancelled) == ["slow-1", "slow-2"]
    assert job.tally.done == 1
