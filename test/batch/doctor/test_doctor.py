"""`sglang-batch doctor`: what is missing is said with its remedy, and nothing else is."""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang.batch.doctor import command, software
from sglang.batch.doctor.device import kernels, ownership, profile
from sglang.batch.doctor.finding import Finding
from sglang.batch.doctor.machine import cores, folder, open_files, space, temporary
from sglang.srt.blend.runtime import installer
from sglang.srt.hardware_backend.portable_cpu import kernel_build

GIB = 1 << 30


def test_a_real_look_finds_everything_here() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sglang.batch.cli", "doctor", "--json"],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=800,
    )
    found = json.loads(done.stdout)
    values = {finding["name"]: finding["value"] for finding in found["findings"]}
    assert {values[name].split()[0] for name in (*software.HOOK_TABLES, "methods", "imports")} == {"all"}
    assert values["SGLang"].startswith(f"{metadata.version('sglang')}, tested with ")
    assert values["platform"].startswith("PortableCpuPlatform")
    assert values["profile"].startswith("cpu")
    assert found["well"] == (done.returncode == 0) == all(not one["remedy"] for one in found["findings"])


@pytest.mark.parametrize(("findings", "code"), [([], 0), ([Finding("device", "profile", "none", "do")], 1)])
def test_the_exit_code_says_whether_something_is_missing(
    findings: list[Finding], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("machine.machine", "machine.caches", "device.device", "software.versions"):
        monkeypatch.setattr(f"sglang.batch.doctor.{name}", list)
    monkeypatch.setattr("sglang.batch.doctor.software.hooks", lambda: findings)
    assert command.run(argparse.Namespace(json=False)) == code
    assert ("all well" in capsys.readouterr().out) == (code == 0)


def test_text_marks_what_is_missing_and_ends_with_the_remedies() -> None:
    findings = [Finding("hooks", "blend policy", "x.y does not exist", "pip install z"), *well("cores")]
    lines = command.as_text([*findings, Finding("machine", "memory", "none", "buy some")]).splitlines()
    assert [line[2:].split()[0] for line in lines if line.startswith("! ")] == ["blend", "memory"]
    assert lines[-3:] == ["2 things are missing:", "  blend policy: pip install z", "  memory: buy some"]


def well(*names: str) -> list[Finding]:
    return [Finding("machine", name, "fine") for name in names]


# ---------------------------------------------------------------- software


def test_every_table_of_hooks_in_the_package_is_looked_at() -> None:
    tables = re.findall(r"^\* `(sglang[\w.]+)`", installer.__doc__ or "", re.MULTILINE)
    assert sorted(software.HOOK_TABLES.values()) == sorted(tables)


def test_a_missing_hook_is_named_with_the_version_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = installer.Hook("sglang.srt.gone.Gone", print, installer.HookType.AFTER, "a test")
    monkeypatch.setattr("sglang.srt.blend.runtime.plugin.HOOKS", (hook,))
    monkeypatch.setattr(software, "REQUIRED", ())
    found = software.hooks({"blend policy": "sglang.srt.blend.runtime.plugin.HOOKS", "other": "sglang.no.H"})
    assert found[0].value == "sglang.srt.gone.Gone does not exist"
    assert found[0].remedy == f'pip install "{software.required_sglang()}"'
    assert "no attribute" in found[1].value
    assert found[1].remedy
    assert found[2] == Finding("hooks", "methods", "all 0 found")


def test_another_sglang_is_named_with_the_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.4.9" if name == "sglang" else real(name))
    found = {finding.name: finding for finding in software.versions()}
    assert found["SGLang"].value.startswith("SGLang 0.4.9 is none that")
    assert found["SGLang"].remedy == f'pip install "{software.required_sglang()}"'
    assert [name for name, finding in found.items() if finding.remedy] == ["SGLang"]


def test_without_a_compiler_the_version_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert software.compiler() == ""


# ---------------------------------------------------------------- device


def test_a_device_is_matched_by_its_drivers_name() -> None:
    found = profile("cuda", "NVIDIA H100 80GB HBM3", 80e9)
    assert found.value.startswith("h100: ")
    assert not found.remedy


def test_an_unknown_device_gets_the_nearest_profile() -> None:
    found = profile("cuda", "NVIDIA A100-SXM-64GB", 64e9)
    assert found.value.startswith("a100-80gb: 'NVIDIA A100-SXM-64GB' has none")
    assert not found.remedy


def test_kernels_that_cannot_be_compiled_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SGLANG_CPU_KERNEL_CACHE", str(tmp_path / "kernels"))
    monkeypatch.delenv("SGLANG_CPU_KERNELS", raising=False)
    ready = kernel_build.kernel_state()
    assert (ready.compiled, ready.problem) == (False, "")
    assert not (tmp_path / "kernels").exists()  # only looked at
    kernel_build._compiler_identity.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = kernels(kernel_build.kernel_state())
    monkeypatch.setenv("SGLANG_CPU_KERNELS", "off")
    assert "no C++ compiler" in found[0].remedy
    assert not kernels(kernel_build.kernel_state())[0].remedy
    monkeypatch.setenv("SGLANG_CPU_KERNELS", "sometimes")
    assert "choose auto, off or require" in kernels(kernel_build.kernel_state())[0].remedy


def test_a_kernel_cache_that_others_can_write_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SGLANG_CPU_KERNELS", raising=False)
    monkeypatch.setenv("SGLANG_CPU_KERNEL_CACHE", str(tmp_path))
    tmp_path.chmod(0o777)
    cpu, cache = kernels(kernel_build.kernel_state())
    assert "can be written by others" in cpu.remedy
    assert str(tmp_path) in cache.value
    tmp_path.chmod(0o700)
    assert not kernels(kernel_build.kernel_state())[0].remedy


def test_compiled_kernels_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SGLANG_CPU_KERNELS", raising=False)
    monkeypatch.setenv("SGLANG_CPU_KERNEL_CACHE", str(tmp_path))
    tmp_path.chmod(0o700)
    build = kernel_build.kernel_state().folder
    assert build is not None
    build.mkdir(mode=0o700)
    (build / "complete.json").write_text("{}")
    assert "cannot read" in kernel_build.kernel_state().problem  # no library beside it
    library = build / f"sglang_cpu_{kernel_build.chosen_instruction_set().name}.so"
    library.touch(mode=0o700)
    assert kernels(kernel_build.kernel_state())[0].value.endswith(", compiled")


def test_ownership_is_told_as_ls_does(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    assert ownership(tmp_path).endswith(", mode 0750")
    assert ownership(tmp_path / "none") == "not there"


# ---------------------------------------------------------------- machine


def test_a_busy_machine_is_called_shared() -> None:
    assert "shared" in cores(4, 3.0).value
    assert "shared" not in cores(4, 1.0).value


@pytest.mark.parametrize(
    ("soft", "hard", "enough"),
    [(1024, 65535, True), (1024, 4096, False), (8192, 8192, True), (1024, resource.RLIM_INFINITY, True)],
)
def test_the_limit_of_open_files_counts_as_sglang_will_raise_it(soft: int, hard: int, enough: bool) -> None:
    assert (open_files(soft, hard).remedy == "") == enough


def test_little_room_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert space("temporary files", tmp_path / "gone", 1, "do").remedy == "do"
    for free, remedy in ((GIB, ""), (1000, "do")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert space("shared memory", tmp_path, 1 << 20, "do").remedy == remedy


def test_a_long_path_of_temporary_files_is_a_problem(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    assert "too long" in temporary(long).value
    assert "TMPDIR" in temporary(long).remedy


def test_a_cache_is_judged_by_the_folder_that_it_would_be_made_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tmp_path / "a" / "b"
    assert not folder("ours", wanted, "do").remedy
    monkeypatch.setattr("os.access", lambda path, _: path != tmp_path)
    assert folder("ours", wanted, "do").remedy == "do"
    assert f"{tmp_path} cannot be written" in folder("ours", wanted, "do").value
