"""Compiling on first use: once however many processes ask, and never in the way where it cannot be done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglang.srt.hardware_backend.portable_cpu import kernel_build
from sglang.srt.hardware_backend.portable_cpu.kernels import get_kernels
from sglang.srt.hardware_backend.portable_cpu.torch_kernels import TorchKernels

TINY_LIBRARY = """
#include <torch/library.h>
#define DEFINE(name, m) TORCH_LIBRARY(name, m)
DEFINE(PORTABLE_CPU_LIBRARY, m) { m.def("answer() -> int", []() -> int64_t { return 42; }); }
"""

LOADER = """
import sys, torch
from pathlib import Path
from sglang.srt.hardware_backend.portable_cpu import kernel_build
kernel_build._SOURCE_FOLDERS = (Path(sys.argv[1]),)
print(getattr(torch.ops, kernel_build.load_preferred()).answer())
"""


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    kernel_build._compiler_identity.cache_clear()
    kernel_build.load_namespace.cache_clear()
    get_kernels.cache_clear()


def test_without_a_compiler_one_line_says_so_and_pytorch_takes_over(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SGLANG_CPU_KERNELS", raising=False)
    assert isinstance(get_kernels(), TorchKernels)
    get_kernels.cache_clear()
    (line,) = capfd.readouterr().err.splitlines()
    assert "no C++ compiler ('no-such-compiler')" in line
    assert "install g++" in line


def test_require_refuses_to_fall_back(no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_CPU_KERNELS", "require")
    with pytest.raises(kernel_build.KernelBuildError, match="no C\\+\\+ compiler"):
        kernel_build.load_preferred()


def test_off_compiles_nothing(no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_CPU_KERNELS", "off")
    assert kernel_build.load_preferred() is None


def test_unknown_settings_name_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_CPU_KERNELS", "fast")
    with pytest.raises(ValueError, match="choose auto, off or require"):
        kernel_build.load_preferred()
    monkeypatch.setenv("SGLANG_CPU_ISA", "mmx")
    with pytest.raises(kernel_build.KernelBuildError, match="choose one of .*generic"):
        kernel_build.chosen_instruction_set()


def test_an_unwritable_cache_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SGLANG_CPU_KERNEL_CACHE", str(tmp_path / "file" / "below"))
    kernel_build.load_namespace.cache_clear()
    with pytest.raises(kernel_build.KernelBuildError, match="set SGLANG_CPU_KERNEL_CACHE"):
        kernel_build.load_namespace("generic")


@pytest.mark.parametrize("writable", ["cache", "folder", "library"])
def test_what_others_can_write_is_not_loaded(
    writable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SGLANG_CPU_KERNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_build, "_build_key", lambda isa: "key")
    folder = tmp_path / "cache" / "generic-key"
    folder.mkdir(parents=True)
    library = folder / "sglang_cpu_generic.so"
    library.write_bytes(b"")
    (folder / "complete.json").write_text("{}")
    paths = {"cache": folder.parent, "folder": folder, "library": library}
    for path in paths.values():
        path.chmod(0o755)
    kernel_build.load_namespace.cache_clear()
    with pytest.raises(kernel_build.KernelBuildError, match="cannot load .* delete"):
        kernel_build.load_namespace("generic")
    paths[writable].chmod(0o775)
    with pytest.raises(
        kernel_build.KernelBuildError, match=f"{paths[writable]} can be written by others.*KERNEL_CACHE"
    ):
        kernel_build.load_namespace("generic")


@pytest.mark.parametrize("how", ["another user's", "a link"])
def test_what_is_not_the_users_is_not_loaded(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SGLANG_CPU_KERNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_build, "_build_key", lambda isa: "key")
    kernel_build.load_namespace.cache_clear()
    if how == "a link":
        (tmp_path / "cache").mkdir(mode=0o700)
        (tmp_path / "cache" / "generic-key").symlink_to(tmp_path)
    else:
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(kernel_build.KernelBuildError, match="is not this user's own"):
        kernel_build.load_namespace("generic")


def test_a_new_cache_is_the_users_alone_whatever_the_umask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SGLANG_CPU_KERNEL_CACHE", str(tmp_path / "new" / "cache"))
    before = os.umask(0)
    try:
        folder = kernel_build._private_folder("generic-key")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]


def start_loader(source: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOADER, str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SGLANG_CPU_KERNEL_CACHE": str(cache), "SGLANG_CPU_KERNELS": "require"},
    )


def test_concurrent_processes_compile_once_and_a_broken_source_leaves_a_log(
    compiled: object, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "library.cpp").write_text(TINY_LIBRARY)
    processes = [start_loader(source, tmp_path / "cache") for _ in range(3)]
    outputs = [process.communicate(timeout=500) for process in processes]
    assert [stdout.strip() for stdout, _ in outputs] == ["42"] * 3, outputs
    assert sum("compiling CPU kernels for" in stderr for _, stderr in outputs) == 1
    again = start_loader(source, tmp_path / "cache").communicate(timeout=500)
    assert again[0].strip() == "42"
    assert "compiling" not in again[1]

    (source / "library.cpp").write_text("this is not C++")
    _, stderr = start_loader(source, tmp_path / "cache").communicate(timeout=500)
    assert "compiling failed, see" in stderr
    (log,) = (tmp_path / "cache").glob("*/build.log")
    assert "this is not" in log.read_text()


def test_a_lock_left_by_a_killed_process_is_not_waited_for(compiled: object, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "library.cpp").write_text(TINY_LIBRARY)
    assert start_loader(source, tmp_path / "cache").communicate(timeout=500)[0].strip() == "42"
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "complete.json").unlink()
    (folder / "lock").write_text("")  # PyTorch's own
    assert start_loader(source, tmp_path / "cache").communicate(timeout=120)[0].strip() == "42"
