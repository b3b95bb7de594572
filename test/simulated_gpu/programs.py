"""Programs of this folder, run as processes of their own: a platform is chosen once in a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(program: str, *arguments: str, platform: str, **environment: str) -> dict:
    """Last line of the program's output, as JSON."""
    done = subprocess.run(
        [sys.executable, str(HERE / program), *arguments],
        env=os.environ | {"SGLANG_PLATFORM": platform} | environment,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
