"""The package `sglang` without what upstream's own imports, torch and all, which takes seconds.

A test starts many runs without need of that. Import this before anything of SGLang's.
"""

import importlib.util
import sys
from types import ModuleType

_package = ModuleType("sglang")
_package.__path__ = importlib.util.find_spec("sglang").submodule_search_locations
sys.modules["sglang"] = _package
