"""Makes `stand_ins`, `journals` and others importable for the tests that use it."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "run")]
