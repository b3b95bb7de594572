"""What a scheduler was working on can be read when it has been killed."""

import os
import subprocess
import sys
from pathlib import Path

from sglang.batch.run.engine.flight_recorder import read

SCHEDULER = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from sglang.batch.run.engine.flight_recorder import install

class Scheduler:
    def run_batch(self, batch, result):
        return (len(batch.reqs), result)

install(Scheduler, Path(sys.argv[1]))
for names in [["first"] * 50, ["old_0", "old_1"], ["old_1", "new"]]:
    batch = SimpleNamespace(reqs=[SimpleNamespace(rid=name) for name in names])
    assert Scheduler().run_batch(batch, "result") == (len(names), "result")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_scheduler_has_left_the_requests_of_its_last_two_batches(tmp_path: Path) -> None:
    folder = tmp_path / "running"
    died = subprocess.run([sys.executable, "-c", SCHEDULER, str(folder)], stderr=subprocess.PIPE, text=True)
    assert died.returncode == -9, died.stderr
    assert read(folder) == {"old", "new"}


def test_nobody_is_known_where_no_scheduler_has_run_anything(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    os.close(os.open(tmp_path / "1", os.O_CREAT | os.O_WRONLY))
    assert read(tmp_path) is None
