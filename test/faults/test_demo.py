"""`make demo`, killed twice, gives the answers that it gives undisturbed."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from echo_jobs import FAULTS

ROOT = Path(__file__).parents[2]
SECONDS = 900


def demo_command(output: Path) -> list[str]:
    """The Makefile's own command, with another output."""
    told = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo", f"VENV={sys.prefix}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("\\\n", " ")
    (line,) = [line for line in told.splitlines() if "sglang-batch run" in line]
    words = shlex.split(line)
    words[words.index("-o") + 1] = str(output)
    words[words.index("--report") + 1] = str(output.with_name("report.json"))
    return words


def answers(output: Path) -> dict[str, str]:
    records = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert len({record["custom_id"] for record in records}) == len(records)
    return {
        record["custom_id"]: record["response"]["body"]["choices"][0]["message"]["content"]
        for record in records
    }


@pytest.mark.skipif(FAULTS != "all", reason="takes minutes; make faults runs it")
@pytest.mark.timeout(4 * SECONDS)
def test_the_demo_killed_twice_gives_the_same_forty_answers(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole" / "out.jsonl"
    subprocess.run(demo_command(whole), cwd=ROOT, check=True, timeout=SECONDS)
    expected = answers(whole)
    assert len(expected) == 40

    output = tmp_path / "out.jsonl"
    partial = Path(f"{output}.partial")
    for count in (6, 18):
        process = subprocess.Popen(demo_command(output), cwd=ROOT)
        deadline = time.monotonic() + SECONDS
        while not (partial.exists() and partial.read_bytes().count(b"\n") >= count):
            assert process.poll() is None, "it has ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
        process.wait()
    before = partial.read_bytes()
    subprocess.run(demo_command(output), cwd=ROOT, check=True, timeout=SECONDS)
    assert output.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert answers(output) == expected
