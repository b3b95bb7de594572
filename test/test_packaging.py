"""The distribution is an overlay: it adds packages to SGLang and touches none of SGLang's files."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads; building in the checkout would leave files there."""
    project = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(
        ROOT / "python", project / "python", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    shutil.copytree(ROOT / "sgl-kernel" / "csrc", project / "sgl-kernel" / "csrc")
    return project / "python"


@pytest.fixture(scope="module")
def wheel_files(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Paths in a wheel built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
        + ["--no-index", "--wheel-dir", str(folder), str(source_tree.parent)],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_only_our_packages(wheel_files: set[str]) -> None:
    ours = tuple(package.replace(".", "/") + "/" for package in PACKAGES)
    metadata = f"sglang_blend-{PROJECT['project']['version']}.dist-info/"
    assert [name for name in wheel_files if not name.startswith((*ours, metadata))] == []


def test_wheel_shares_no_file_with_upstream(wheel_files: set[str]) -> None:
    upstream = {str(file) for file in importlib.metadata.files("sglang") or ()}
    assert "sglang/__init__.py" in upstream
    assert wheel_files & upstream == set()


def test_wheel_holds_every_source_file(wheel_files: set[str], source_tree: Path) -> None:
    sources = {
        str(file.relative_to(source_tree))
        for file in source_tree.rglob("*")
        if file.is_file() and file.suffix in {".py", ".toml", ".csv", ".json"}
    }
    assert sources - wheel_files == set()


def test_wheel_carries_the_kernels_sources(wheel_files: set[str]) -> None:
    sources = {file.name for file in (ROOT / "sgl-kernel" / "csrc").iterdir() if file.is_file()}
    place = "sglang/srt/hardware_backend/portable_cpu/csrc/"
    assert sources == {name.removeprefix(place) for name in wheel_files if name.startswith(place)}


def test_wheel_carries_the_license(wheel_files: set[str]) -> None:
    assert any(name.endswith("/licenses/LICENSE") for name in wheel_files)


@pytest.mark.parametrize("group", ["sglang.srt.plugins", "sglang.srt.platforms", "console_scripts"])
def test_entry_points_load(group: str) -> None:
    ours = importlib.metadata.distribution("sglang-blend").entry_points.select(group=group)
    assert len(ours) > 0
    for entry_point in ours:
        assert callable(entry_point.load())


def test_constraints_are_exact_and_name_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)] == []


def test_installed_versions_are_the_tested_ones() -> None:
    """What runs here is what constraints.txt says, so a green run vouches for it."""
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    installed = {name: importlib.metadata.version(name) for name in ("sglang", "torch", "transformers")}
    assert installed == {name: pins[name] for name in installed}
