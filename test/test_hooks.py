"""One module touches upstream's hook registry, and every table of hooks is found from it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INSTALLER = ROOT / "python/sglang/srt/blend/runtime/installer.py"


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted names and files of the package and of the benchmarks."""
    for file in (ROOT / "python").rglob("*.py"):
        yield ".".join(file.relative_to(ROOT / "python").with_suffix("").parts), file
    for file in (ROOT / "benchmark").rglob("*.py"):
        yield ".".join(file.relative_to(ROOT).with_suffix("").parts), file


MODULES = dict(modules())
TABLES = tuple(dict.fromkeys(re.findall(r"^\* `([\w.]+)\.\w+`", INSTALLER.read_text(), re.MULTILINE)))
"""Modules with tables of hooks."""


def made_in(file: Path) -> list[ast.Call]:
    """The hooks that a module makes."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Hook"]


def test_only_the_installer_touches_the_registry() -> None:
    touching = [name for name, file in MODULES.items() if "HookRegistry" in file.read_text()]
    assert touching == ["sglang.srt.blend.runtime.installer"]


def test_the_installer_names_every_module_that_makes_hooks() -> None:
    assert sorted(name for name, file in MODULES.items() if made_in(file)) == sorted(TABLES)


@pytest.mark.parametrize("module", TABLES)
def test_every_hook_says_why(module: str) -> None:
    for hook in made_in(MODULES[module]):
        _target, _function, _kind, reason = hook.args[:4]
        assert isinstance(reason, ast.Constant)
        assert len(reason.value) > 10
