"""What is installed, and whether SGLang has everything that we hook into or build on."""

from __future__ import annotations

import os
import pkgutil
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata

from packaging.requirements import Requirement

from sglang.batch.doctor.finding import Finding
from sglang.srt.blend.runtime import installer
from sglang.srt.blend.runtime.compatibility import REQUIRED, problems

PACKAGE = "sglang-blend"

SHOWN = ("torch", "transformers", "numba", "numpy")
"""Packages whose versions matter when something goes wrong."""

# By name, since the platforms are looked at here and nothing is built on them.
HOOK_TABLES: Mapping[str, str] = {
    "blend policy": "sglang.srt.blend.runtime.plugin.HOOKS",
    "portable CPU": "sglang.srt.hardware_backend.portable_cpu.hooks.HOOKS",
    "simulated GPU": "sglang.srt.hardware_backend.simulated_gpu.hooks.HOOKS",
}
"""What does not run where a hook's target is missing, and the table of its hooks."""


def versions() -> list[Finding]:
    """List versions; SGLang's must be one that this package is made for."""
    found = [Finding("versions", PACKAGE, _version(PACKAGE)), _sglang()]
    found += [Finding("versions", name, _version(name)) for name in SHOWN]
    found.append(Finding("versions", "Python", f"{platform.python_version()}, {platform.platform()}"))
    found.append(Finding("versions", "compiler", compiler() or "none; set CXX to one"))
    return found


def hooks(tables: Mapping[str, str] = HOOK_TABLES) -> list[Finding]:
    """Look up every symbol of SGLang that the package touches; this imports SGLang's scheduler.

    Args:
        tables: dotted names of tables of hooks, by what needs them.
    """
    found = []
    for user, name in tables.items():
        try:
            targets = installer.targets(pkgutil.resolve_name(name))
        except (ImportError, AttributeError) as error:
            found.append(_looked_up(user, [str(error)], 0))
        else:
            found.append(_looked_up(user, problems(targets, ()), len(targets)))
    return [*found, _looked_up("symbols beside", problems((), REQUIRED), len(REQUIRED))]


def _looked_up(name: str, missing: list[str], count: int) -> Finding:
    if not missing:
        return Finding("hooks", name, f"all {count} found")
    return Finding("hooks", name, "; ".join(missing), f'pip install "{required_sglang()}"')


def compiler() -> str:
    """Name the C++ compiler that CPU kernels would be compiled with; "" where there is none."""
    command = shutil.which(os.environ.get("CXX", "c++"))
    if command is None:
        return ""
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    return f"{command}: {version.stdout.partition(chr(10))[0]}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _sglang() -> Finding:
    """Compare SGLang's version with the requirement in our own metadata."""
    wanted = required_sglang()
    installed = _version("sglang")
    if installed in wanted.specifier:
        return Finding("versions", "SGLang", installed)
    return Finding(
        "versions", "SGLang", f"{installed}, made for {wanted.specifier}", f'pip install "{wanted}"'
    )


def required_sglang() -> Requirement:
    """Read which SGLang this package requires."""
    wanted = (Requirement(text) for text in metadata.requires(PACKAGE) or ())
    return next(one for one in wanted if one.name == "sglang")
