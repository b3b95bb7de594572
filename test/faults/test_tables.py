"""A job from table to table: killed at any moment, the same command continues."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from echo_jobs import FAULTS, SECONDS, EchoJob

LINES = 200

FLAGS = ("--prompt-template", "{text}", "--url", "/v1/completions", "--id-column", "id")


def texts(count: int = LINES) -> list[str | None]:
    """Prompts, some of which are refused, raise, or are no prompt."""
    return [{7: "refuse", 8: "raise", 9: None}.get(i % 50, f"text {i}") for i in range(count)]


class TableJob(EchoJob):
    """An echo job from in.parquet to out.parquet."""

    def __init__(self, folder: Path, count: int = LINES) -> None:
        super().__init__(folder, [])
        self.input.unlink()
        self.input = folder / "in.parquet"
        self.output = folder / "out.parquet"
        self.errors = Path(f"{self.output}.errors.jsonl")
        self.log = Path(f"{self.output}.jsonl")
        self.partial = Path(f"{self.log}.partial")
        self.journal = Path(f"{self.output}.journal")
        self.write(count)

    def write(self, count: int) -> None:
        ids = [f"r{i}" for i in range(count)]
        pq.write_table(pa.table({"id": ids, "text": texts(count), "n": range(count)}), self.input)

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.output).to_pylist()
        return found

    def assert_answered(self, count: int = LINES) -> None:
        good = [i for i, text in enumerate(texts(count)) if text is not None and text.startswith("text")]
        assert [(row["custom_id"], row["text"], row["n"]) for row in self.rows()] == [
            (f"r{i}", f"text {i}", i) for i in good
        ]
        assert [row["response_text"] for row in self.rows()] == [f"echo text {i}" for i in good]
        failed = sorted(record["custom_id"] for record in self.records(self.errors))
        assert failed == sorted({f"r{i}" for i in range(count)} - {f"r{i}" for i in good})


@pytest.mark.parametrize("seed", range(10 if FAULTS == "all" else 2))
def test_a_table_that_was_killed_is_completed(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    job = TableJob(tmp_path)
    flags = [*FLAGS, "--echo-seconds", "0.1", "--pool", "10", "--commit-ms", "5"]
    flags += ["--in-order"] if seed % 2 else []
    job.kill_after_records(chance.randrange(1, LINES // 2), *flags)
    assert not job.output.exists()
    done = {record["custom_id"] for record in map(json.loads, job.partial.read_bytes().splitlines()[:-20])}
    before = job.computed()
    code, said = job.run(*flags)
    assert code == 1, said
    job.assert_answered()
    assert done.isdisjoint(job.computed() - before)
    assert job.leftovers() == {"in.parquet", "out.parquet", *beside(job)}
    code, said = job.run(*flags)
    assert "nothing is left to do" in said


def beside(job: TableJob) -> set[str]:
    return {f"out.parquet.{suffix}" for suffix in ("jsonl", "errors.jsonl", "journal", "lock")}


def test_a_kill_while_the_table_is_written_costs_nothing(tmp_path: Path) -> None:
    job = TableJob(tmp_path, 5_000)
    finish = Path(f"{job.output}.finish")
    for _ in range(10 if FAULTS == "all" else 2):
        finish.unlink(missing_ok=True)
        process = job.start(*FLAGS, "--pool", "1000")
        while process.poll() is None and not finish.exists():
            time.sleep(0.001)
        process.kill()
        process.communicate(timeout=SECONDS)
    before = job.computed()
    code, said = job.run(*FLAGS)
    assert code == 1, said
    assert job.computed() == before
    job.assert_answered(5_000)
    assert not finish.exists()


def test_errors_in_the_output_are_rows(tmp_path: Path) -> None:
    job = TableJob(tmp_path, 50)
    assert job.run(*FLAGS, "--errors", "-")[0] == 1
    codes = {row["n"]: row["error_code"] for row in job.rows()}
    assert codes == {
        i: {7: "BadRequestError", 8: "internal_error", 9: "invalid_row"}.get(i) for i in range(50)
    }


def test_rows_that_are_added_and_failures_that_are_retried_get_into_the_table(tmp_path: Path) -> None:
    job = TableJob(tmp_path, 60)
    assert job.run(*FLAGS)[0] == 1
    before = job.computed()
    job.write(70)
    assert job.run(*FLAGS, "--retry-codes", "internal_error")[0] == 1
    job.assert_answered(70)
    assert set(job.computed() - before) == {"r8", "r58", *(f"r{i}" for i in range(60, 70))}
    job.output.unlink()
    assert job.run(*FLAGS)[0] == 1
    job.assert_answered(70)


def test_without_a_journal_only_the_table_is_left(tmp_path: Path) -> None:
    job = TableJob(tmp_path, 5)
    assert job.run(*FLAGS, "--no-keep-journal")[0] == 0
    assert job.leftovers() == {"in.parquet", "out.parquet", "out.parquet.lock"}
    code, said = job.run(*FLAGS)
    assert code == 2
    assert "out.parquet: exists" in said
    assert job.run(*FLAGS, "--restart")[0] == 0
    assert pq.read_table(tmp_path / "out.parquet.old").num_rows == 5


def test_other_flags_for_rows_are_named_and_refused(tmp_path: Path) -> None:
    job = TableJob(tmp_path, 5)
    assert job.run(*FLAGS)[0] == 0
    code, said = job.run(*FLAGS, "--param", "max_tokens=5")
    assert code == 2
    assert "--param: was not set, is ['max_tokens=5']" in said
    code, said = job.run(*FLAGS, "--prompt-template", "Say {text}")
    assert code == 2
    assert "--prompt-template: was '{text}'" in said


def test_two_names_for_one_file_are_refused(tmp_path: Path) -> None:
    job = TableJob(tmp_path, 5)
    code, said = job.run(*FLAGS, "--errors", str(job.log))
    assert (code, "--errors" in said) == (2, True)
    code, said = job.run(*FLAGS, "--errors", str(tmp_path / "errors.parquet"))
    assert (code, "JSONL" in said) == (2, True)
