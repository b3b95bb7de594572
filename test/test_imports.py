"""Imports point one way: core <- runtime <- platforms <- batch, which of platforms knows the simulated GPU.

Read from the source text, imports inside functions included. (import-linter finds packages below a
regular top-level package only where that package itself lies, which for an overlay is elsewhere.)
"""

import ast
import graphlib
from pathlib import Path

import pytest

PYTHON = Path(__file__).resolve().parents[1] / "python"

CORE = "sglang.srt.blend.core"
RUNTIME = "sglang.srt.blend.runtime"
PORTABLE_CPU = "sglang.srt.hardware_backend.portable_cpu"
PLATFORMS = (PORTABLE_CPU, "sglang.srt.hardware_backend.simulated_gpu")
BATCH = "sglang.batch"

# Core's own packages, each of which may import those before it.
LAYERS = tuple(f"{CORE}.{name}" for name in ("cost", "pool", "step", "order"))

# Package: what it must not import, apart from the allowed packages inside that.
FORBIDDEN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    CORE: (("torch", "sglang", "transformers"), (CORE,)),
    **{layer: ((CORE,), LAYERS[: i + 1]) for i, layer in enumerate(LAYERS)},
    RUNTIME: ((*PLATFORMS, BATCH), ()),
    **dict.fromkeys(PLATFORMS, ((BATCH,), ())),
    BATCH: ((PORTABLE_CPU, "benchmark"), ()),
}


def imported_modules(source: str, package: str) -> set[str]:
    """Absolute dotted names of what `source`, a module of `package`, imports: modules or names in them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def violations(package: str) -> list[str]:
    forbidden, allowed = FORBIDDEN[package]
    return [
        f"{file.relative_to(PYTHON)} imports {module}"
        for file in sorted((PYTHON / package.replace(".", "/")).rglob("*.py"))
        for module in sorted(
            imported_modules(file.read_text(), ".".join(file.parent.relative_to(PYTHON).parts))
        )
        if _within(module, forbidden) and not _within(module, allowed)
    ]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    assert violations(package) == []


def test_no_module_imports_itself_through_others() -> None:
    """Not even inside functions, or for a type checker alone."""
    modules = {_name(file): file for file in PYTHON.rglob("*.py")}
    imports: dict[str, set[str | None]] = {}
    for name, file in modules.items():
        found = imported_modules(file.read_text(), _package(file))
        imports[name] = {_module(one, modules) for one in found} - {None, name}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules


def _package(file: Path) -> str:
    return ".".join(file.parent.relative_to(PYTHON).parts)


def _name(file: Path) -> str:
    return _package(file) if file.stem == "__init__" else f"{_package(file)}.{file.stem}"


def _module(found: str, modules: dict[str, Path]) -> str | None:
    """The module of ours that an imported name is, or is in; None for others."""
    return next((name for name in (found, found.rpartition(".")[0]) if name in modules), None)


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import torch.nn
from . import a
def f():
    from ..runtime.b import c
    from sglang import d
"""
    assert imported_modules(source, CORE) == {"torch.nn", f"{CORE}.a", f"{RUNTIME}.b.c", "sglang.d"}
