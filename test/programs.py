"""Programs that tests start in a process of their own, because a process has one platform."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def last_line(program: Path, *arguments: str, platform: str, **environment: str) -> Any:
    """Last line of a program's output, as JSON."""
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        env=os.environ | {"SGLANG_PLATFORM": platform} | environment,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
