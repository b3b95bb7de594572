"""Flags are chosen where that can pay, within limits, once per job, and never where the user has decided."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from journals import journal as new_journal
from journals import recorded
from stand_ins import line

from checkpoints import VOCABULARY, make_tokenizer
from models import LLAMA_3_8B
from sglang.batch.input.source import Source, find_sources
from sglang.batch.run import tune as tune_module
from sglang.batch.run.identity import DECIDING_FLAGS
from sglang.batch.run.tune import BLOCK, BLOCKS, CHOSEN, Device, Tuning, find_device, planned, tune
from sglang.batch.server_flags import with_defaults
from sglang.batch.usage import BadUsage

H100 = Device("NVIDIA H100 80GB HBM3", 1, 80 << 30)

MIXED = [
    ("--schedule-policy blend", "as fast"),
    ("--enable-mixed-chunk", "1.10x"),
    ("--tp-size 1", "as asked"),
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tune_module, "LEAST_LINES", 5000)
    monkeypatch.setattr(tune_module, "SECONDS", 600.0)  # a busy machine takes a minute to import a planner
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(line(f"r{i}") for i in range(5000)))
    return path


def tuned(path: Path, *flags: str, found: Any = MIXED, **options: Any) -> Tuning:
    def recommend(source: Source, device: Device, flags: list[str]) -> list[tuple[str, str]]:
        if callable(found):
            return found(source, flags)  # type: ignore[no-any-return]
        return found  # type: ignore[no-any-return]

    options = {"journal": path.with_name("journal"), "device": H100, **options}
    sources = find_sources([str(path)])
    return tune(sources, with_defaults(flags), recommend=recommend, **options)


def test_what_a_plan_recommends_is_chosen_of_what_may_be(file: Path) -> None:
    chosen = tuned(file)
    assert chosen.flags == ("--enable-mixed-chunk",)
    assert "1.10x" in chosen.why
    assert tuned(file, found=MIXED[:1]).flags == ()


def test_the_order_of_the_file_is_taken_where_blend_is_slower_and_its_user_did_not_ask_for_it(
    file: Path,
) -> None:
    asked: list[list[str]] = []

    def slower(source: Source, flags: list[str]) -> list[tuple[str, str]]:
        asked.append(flags[:2])
        return [("--schedule-policy fcfs", "blend takes 1.05x")]

    assert tuned(file, found=slower).flags == ("--schedule-policy", "fcfs")
    tuned(file, found=slower, policy_set=True)
    assert asked == [["--policies", "fcfs,blend"], ["--policies", "blend"]]


@pytest.mark.parametrize(
    ("count", "flags", "why"),
    [(8, ("--tp-size", "4"), "hold the model"), (2, (), "needs 4 x NVIDIA H100 80GB HBM3, and there are 2")],
)
def test_as_many_gpus_are_taken_as_hold_the_model(
    count: int, flags: tuple[str, ...], why: str, file: Path
) -> None:
    found = [("--schedule-policy blend", "as fast"), ("--tp-size 4", "as few GPUs as hold the model")]
    chosen = tuned(file, found=found, device=Device(H100.name, count, H100.memory))
    assert (chosen.flags, why in chosen.why) == (flags, True), chosen.why


@pytest.mark.parametrize(("count", "weights", "asks"), [(8, 70, True), (1, 70, False), (8, 7, False)])
def test_few_lines_are_read_only_for_a_model_that_may_need_several_gpus(
    count: int, weights: int, asks: bool, file: Path
) -> None:
    asked: list[list[str]] = []

    def only_sizes(source: Source, flags: list[str]) -> list[tuple[str, str]]:
        asked.append(flags[:2])
        return [("--tp-size 2", "as few GPUs as hold the model")]

    file.write_bytes(file.read_bytes()[:2000])
    device = Device(H100.name, count, H100.memory)
    chosen = tuned(file, found=only_sizes, device=device, weights=weights << 30)
    assert asked == ([["--simulate-requests", "0"]] if asks else [])
    assert chosen.flags == (("--tp-size", "2") if asks else ())


def test_how_many_gpus_hold_a_model_is_what_a_plan_without_simulations_says(
    file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    make_tokenizer().save_pretrained(model)
    config = LLAMA_3_8B | {"vocab_size": VOCABULARY, "eos_token_id": 2}
    (model / "config.json").write_text(json.dumps(config))
    file.write_bytes(file.read_bytes()[:2000])
    source = find_sources([str(file)])[0]
    flags = ["--simulate-requests", "0", *with_defaults(["--model-path", str(model)])]
    assert planned(source, H100, flags) == [("--tp-size 1", "as few GPUs as hold the model")]


@pytest.mark.parametrize(
    ("said", "visible", "device"),
    [
        ("NVIDIA L4, 23034\nNVIDIA L4, 23034\n", None, Device("NVIDIA L4", 2, 23034 << 20)),
        ("NVIDIA L4, 23034\nNVIDIA L4, 23034\n", "1", Device("NVIDIA L4", 1, 23034 << 20)),
        ("NVIDIA L4, 23034\nTesla T4, 15360\n", None, Device("NVIDIA L4", 1, 23034 << 20)),
        ("NVIDIA GB10, [N/A]\n", None, None),
        ("", None, None),
    ],
)
def test_gpus_are_those_that_the_driver_names_and_cuda_may_use(
    said: str, visible: str | None, device: Device | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\nprintf '%s' '{said}'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_device() == device


def test_no_flag_that_decides_answers_may_be_chosen() -> None:
    assert not {flag.removeprefix("--").replace("-", "_") for flag in CHOSEN} & set(DECIDING_FLAGS)


@pytest.mark.parametrize(
    ("flags", "options", "why"),
    [
        (["--enable-mixed-chunk"], {}, "--enable-mixed-chunk is set"),
        (["--tp-size=2"], {}, "--tp-size=2 is set"),
        (["--schedule-policy", "fcfs"], {}, "only for"),
        (["--schedule-policy=lpm"], {}, "only for"),
        ([], {"device": None}, "no GPU"),
    ],
)
def test_where_it_cannot_help_nothing_is_simulated(
    flags: list[str], options: dict[str, Any], why: str, file: Path
) -> None:
    def fail(source: Source, flags: list[str]) -> None:
        raise AssertionError("simulated")

    chosen = tuned(file, *flags, found=fail, **options)
    assert (chosen.flags, why in chosen.why) == ((), True), chosen.why


def test_a_small_input_is_answered_sooner_than_simulated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])
    assert "sooner" in tuned(file).why


def test_the_excerpt_is_of_blocks_and_only_its_owners(file: Path) -> None:
    seen: list[Path] = []

    def look(source: Source, flags: list[str]) -> list[tuple[str, str]]:
        assert source.path is not None
        seen.append(source.path)
        lines = source.path.read_bytes().splitlines()
        every = 5000 // BLOCKS
        assert lines == [raw for i, raw in enumerate(file.read_bytes().splitlines()) if i % every < BLOCK]
        assert source.path.parent.stat().st_mode & 0o077 == 0
        return MIXED

    tuned(file, found=look)
    assert not seen[0].exists()


def test_simulations_that_take_too_long_are_given_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_module, "SECONDS", 0.2)
    server = ["--model-path", str(file.parent)]
    chosen = tuned(file, found=lambda source, flags: planned(source, H100, server))
    assert (chosen.flags, "did not end" in chosen.why) == ((), True)


def test_a_plan_that_cannot_be_made_leaves_the_flags(file: Path) -> None:
    def broken(source: Source, flags: list[str]) -> None:
        raise BadUsage("no config")

    assert tuned(file, found=broken) == Tuning((), "not tuned: no config")


def test_a_job_keeps_what_it_began_with(file: Path, tmp_path: Path) -> None:
    journal = new_journal(tmp_path, lines=2)
    journal.set(tuned=asdict(Tuning(("--enable-mixed-chunk",), "tuned: x")))
    assert tuned(file, found=MIXED[:1]).flags == (), "nothing was answered with it yet"
    journal.record([recorded(0, 0)])
    again = tuned(file, found=MIXED[:1])
    assert again == Tuning(("--enable-mixed-chunk",), "tuned: x, by an earlier run of the job")


def test_why_there_is_no_plan_is_what_the_planner_says(file: Path) -> None:
    with pytest.raises(BadUsage, match="Quadro"):
        planned(find_sources([str(file)])[0], Device("Quadro 1", 1, 1 << 30), [])
