"""What takes simulations longest to import, imported once by the process that they fork off from.

Importing it has effects: never do so anywhere else.
"""

import importlib
import logging
import warnings

# Upstream remarks on kernels that no simulation needs; its errors are heard.
logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
for _name in (
    "sglang.srt.entrypoints.engine",
    "sglang.srt.managers.scheduler",
    "sglang.srt.models.registry",
):
    importlib.import_module(_name)
