"""The check of real engines, with engines that are stand-ins."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from benchmark.gpu import check as module
from benchmark.gpu.check import REVERSED, complaints, engine_options, main, make_pool, parse, table
from benchmark.offline.pool_file import read_pool
from benchmark.offline.protocol import WorkerFailed
from benchmark.offline.scheduler_hooks import tell_held_tokens

CAPACITY = 4096
SPEED = {"fcfs": 40.0, "lpm": 20.0, "blend": 10.0}


class Engine:
    """A worker whose answers are the prompts' first token, in as many copies as the answer is long.

    Attributes:
        calls: first tokens of the prompts, for each pool that it answered.
    """

    pid = 1

    def __init__(self, policy: str, *, wrong: int = 0, held: int = 0) -> None:
        self.policy, self.wrong, self.held = policy, wrong, held
        self.calls: list[list[int]] = []
        self.stopped = False

    def ready(self) -> dict[str, Any]:
        return {"kv_capacity": CAPACITY}

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        pool = read_pool(message["pool"])
        self.calls.append([prompt[0] for prompt in pool.prompts])
        answers = [[prompt[0]] * int(n) for prompt, n in zip(pool.prompts, pool.output, strict=True)]
        for answer in answers[: self.wrong]:
            answer[-1] = -1
        return {"seconds": SPEED[self.policy], "answers": answers, "cached_tokens": 7, "held": self.held}

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, Engine]:
    """The engine of each policy; they leave no processes and take no memory."""
    known = {policy: Engine(policy) for policy in SPEED}
    monkeypatch.setattr(module, "start_worker", lambda options, policy: known[policy])
    monkeypatch.setattr(psutil, "Process", lambda pid: SimpleNamespace(children=lambda recursive: []))
    return known


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    out = tmp_path / "out"
    code = main(["--device", "cpu", "--policies", "fcfs,blend", "--out", str(out), *arguments])
    return code, json.loads((out / "check.json").read_text())


def test_equal_answers_and_nothing_left_pass_with_the_ratio_of_seconds(
    engines: dict[str, Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, record = run(tmp_path, "--deterministic")
    assert code == 0
    assert record["wrong"] == []
    rows = record["outcomes"]
    assert [(row["policy"], row["ratio"]) for row in rows] == [
        (f"fcfs, {REVERSED}", 1.0),
        ("fcfs", 1.0),
        ("blend", 4.0),
    ]
    assert all(row["same"] == row["requests"] > 10 for row in rows)
    assert all(engine.stopped for policy, engine in engines.items() if policy != "lpm")
    told = capsys.readouterr().out
    assert "4.00" in told
    assert told.endswith("gpu-check: passed\n")


def test_every_policy_gets_the_same_pool_after_it_has_warmed_up_with_its_reverse(
    engines: dict[str, Engine], tmp_path: Path
) -> None:
    run(tmp_path)
    warm_up, measured = engines["fcfs"].calls
    assert warm_up == measured[::-1] != measured
    assert engines["blend"].calls == [warm_up, measured]


def test_answers_that_differ_fail_only_where_inference_is_deterministic(
    engines: dict[str, Engine], tmp_path: Path
) -> None:
    engines["blend"].wrong = 3
    code, record = run(tmp_path)
    blend = record["outcomes"][-1]
    assert (code, blend["requests"] - blend["same"]) == (0, 3)
    code, record = run(tmp_path, "--deterministic")
    assert code == 1
    assert record["wrong"] == [f"blend: 3 of {blend['requests']} answers differ"]


def test_tokens_that_are_held_and_processes_that_live_on_fail(
    engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines["blend"].held = 16
    process = SimpleNamespace(status=lambda: psutil.STATUS_SLEEPING)
    dead = SimpleNamespace(status=lambda: psutil.STATUS_ZOMBIE)
    monkeypatch.setattr(
        psutil, "Process", lambda pid: SimpleNamespace(children=lambda recursive: [process, dead])
    )
    monkeypatch.setattr(psutil, "wait_procs", lambda processes, timeout: ([], processes))
    code, record = run(tmp_path, "--policies", "blend")
    assert code == 1
    assert record["wrong"][2:] == [
        "blend: 16 KV tokens are held though nothing runs",
        "blend: 1 processes live on",
    ]


def test_memory_of_the_gpu_that_does_not_come_back_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(module, "free_memory", lambda device: 10 << 30)
    missing = module.missing_memory("cuda", 11 << 30)
    assert missing == 1 << 30
    assert module.missing_memory("cuda", 9 << 30) == 0
    one = module.Outcome("lpm", 1, 1.0, 1.0, 1.0, 1, 0, 0, 0, missing)
    assert complaints([one], deterministic=True) == ["lpm: 1024 MiB of GPU memory did not come back"]


def test_a_machine_without_a_gpu_skips_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "gpu_is_here", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    assert capsys.readouterr().out == "gpu-check: skipped: no NVIDIA GPU here\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "fcfs,sjf"], "--policies sjf: choose among fcfs, lpm, dfs-weight, blend"),
        (["--demand", "0"], "--demand must be positive"),
        (["--engine-options", "[1]"], "--engine-options"),
    ],
)
def test_bad_usage_is_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_engine_that_dies_is_exit_code_3_and_is_stopped(
    engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(message: dict[str, Any]) -> dict[str, Any]:
        raise WorkerFailed("pool memory leak detected!")

    monkeypatch.setattr(engines["fcfs"], "call", dies)
    assert main(["--device", "cpu", "--policies", "fcfs", "--out", str(tmp_path)]) == 3
    assert engines["fcfs"].stopped


def test_the_pool_has_shared_prefixes_of_mixed_lengths_and_both_kinds_of_requests() -> None:
    pool = make_pool(100_000, 2.0, 1.0, seed=0)
    assert 200_000 <= pool.total_tokens < 220_000
    long_answers = pool.output > module.SHORT_ANSWER[1]
    kinds = [int((pool.prompt + pool.output)[chosen].sum()) for chosen in (long_answers, ~long_answers)]
    assert abs(kinds[0] - kinds[1]) < 0.1 * pool.total_tokens
    starts = [
        tuple(pool.prompt_tokens(i)[: module.SHARED[0]].tolist()) for i in np.flatnonzero(~long_answers)
    ]
    groups = {start: starts.count(start) for start in starts}
    assert set(groups.values()) == {module.GROUP}
    lengths = pool.prompt[~long_answers]
    assert lengths.max() > 3 * lengths.min()
    assert (pool.max_new_tokens >= pool.output).all()
    assert 0.3 < pool.known.mean() < 0.7
    again = make_pool(100_000, 2.0, 1.0, seed=0)
    assert np.array_equal(again.tokens, pool.tokens)


def test_deterministic_inference_is_upstreams_own_flag() -> None:
    from sglang.srt.server_args import ServerArgs

    arguments = ["--model-path", "/a/model", "--deterministic", "--engine-options", '{"tp_size": 2}']
    chosen = engine_options(parse(arguments), "blend")
    assert chosen["enable_deterministic_inference"]
    assert (chosen["schedule_policy"], chosen["tp_size"]) == ("blend", 2)
    assert "device" not in chosen
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = {action.dest for action in parser._actions}
    assert {"enable_deterministic_inference", "max_total_tokens", "skip_tokenizer_init"} <= flags
    arguments.remove("--deterministic")
    assert "enable_deterministic_inference" not in engine_options(parse(arguments), "lpm")


def test_a_schedulers_held_tokens_are_told() -> None:
    stats = SimpleNamespace(full_num_used=48)
    scheduler = SimpleNamespace(pool_stats_observer=SimpleNamespace(get_pool_stats=lambda: stats))
    output = SimpleNamespace(internal_state={"a": 1})
    assert tell_held_tokens(output, SimpleNamespace(scheduler=scheduler), None) is output
    assert output.internal_state == {"a": 1, "kv_tokens_held": 48}


def test_the_table_has_a_line_for_each_run() -> None:
    lines = table([module.Outcome("blend", 9, 2.0, 500.0, 1.25, 8, 1234, 0, 0, 0)]).splitlines()
    assert lines[1].split() == ["blend", "2.0", "500", "1.25", "8", "of", "9", "1,234"]
