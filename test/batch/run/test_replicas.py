"""`--dp-size`: the barrier holds every replica, and every replica answers its part."""

import json
import subprocess
import sys
from pathlib import Path

from replicas_script import REQUESTS

from checkpoints import make_llama

SECONDS = 840  # for four processes that start an engine on a busy machine


def test_two_replicas_are_held_together_and_both_answer(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "llama")
    script = Path(__file__).with_name("replicas_script.py")
    flags = ["--model-path", str(model), "--dtype", "float32", "--max-total-tokens", "2048", "--dp-size", "2"]
    done = subprocess.run(
        [sys.executable, str(script), *flags, "--mem-fraction-static", "0.8"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["early"] == 0, "a replica did not hear of the barrier"
    assert found["answered"] == REQUESTS
    assert len(found["blend"]) == 2
    assert all(blend["sharing_possible"] > 0.3 for blend in found["blend"]), "a replica saw no pool"
