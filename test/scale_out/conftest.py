"""Makes the echo engine and stand-ins importable for the tests here, and keeps Ray from reporting home."""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("faults", "batch")]
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
