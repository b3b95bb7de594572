"""Flags are chosen where that can pay, within limits, once per job, and never where the user has decided."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from journals import journal as new_journal
from journals import recorded
from stand_ins import line

from sglang.batch.input.source import Source, find_sources
from sglang.batch.run import tune as tune_module
from sglang.batch.run.identity import DECIDING_FLAGS
from sglang.batch.run.tune import BLOCK, BLOCKS, CHOSEN, Tuning, planned, tune
from sglang.batch.server_flags import with_defaults
from sglang.batch.usage import BadUsage

MIXED = [
    ("--schedule-policy blend", "as fast"),
    ("--enable-mixed-chunk", "1.10x"),
    ("--tp-size 1", "as asked"),
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tune_module, "LEAST_LINES", 5000)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(line(f"r{i}") for i in range(5000)))
    return path


def tuned(path: Path, *flags: str, found: Any = MIXED, **options: Any) -> Tuning:
    def recommend(sources: Sequence[Source], device: str, server: list[str]) -> list[tuple[str, str]]:
        if callable(found):
            return found(sources)  # type: ignore[no-any-return]
        return found  # type: ignore[no-any-return]

    options = {"journal": path.with_name("journal"), "device": "NVIDIA H100 80GB HBM3", **options}
    sources = find_sources([str(path)])
    return tune(sources, with_defaults(flags), recommend=recommend, **options)


def test_what_a_plan_recommends_is_chosen_of_what_may_be(file: Path) -> None:
    chosen = tuned(file)
    assert chosen.flags == ("--enable-mixed-chunk",)
    assert "1.10x" in chosen.why
    assert tuned(file, found=MIXED[:1]).flags == ()


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
    def fail(sources: Sequence[Source]) -> None:
        raise AssertionError("simulated")

    chosen = tuned(file, *flags, found=fail, **options)
    assert (chosen.flags, why in chosen.why) == ((), True), chosen.why


def test_a_small_input_is_answered_sooner_than_simulated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])
    assert "sooner" in tuned(file).why


def test_the_excerpt_is_of_blocks_and_only_its_owners(file: Path) -> None:
    seen: list[Path] = []

    def look(sources: Sequence[Source]) -> list[tuple[str, str]]:
        (source,) = sources
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
    chosen = tuned(file, found=lambda sources: planned(sources, "h100", server))
    assert (chosen.flags, "did not end" in chosen.why) == ((), True)


def test_a_plan_that_cannot_be_made_leaves_the_flags(file: Path) -> None:
    def broken(sources: Sequence[Source]) -> None:
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
        planned(find_sources([str(file)]), "Quadro 1", [])
