"""Compiles ``sgl-kernel/csrc`` for this machine's CPU, once, and loads the result.

No wheel can carry machine code for every CPU, so the C++ sources travel in the wheel and are compiled on
first use, for the widest vector instructions found, into a cache that all processes of the user share:
``$SGLANG_CPU_KERNEL_CACHE``, else ``$XDG_CACHE_HOME/sglang-blend/cpu-kernels``, else the same under
``~/.cache``. The folder's name is a hash of the sources, PyTorch's version, the compiler and its flags;
nothing is ever overwritten, and a damaged or foreign build is never picked up. Cache, folder and library
must belong to the user, and nobody else may be able to write them: what is loaded runs as this user.

``SGLANG_CPU_KERNELS`` is ``auto`` (default), ``off`` (PyTorch operators, nothing is compiled) or
``require`` (fail instead of falling back). ``SGLANG_CPU_ISA`` forces one of ``INSTRUCTION_SETS``.
To compile ahead of time, for example into an image:
``python -m sglang.srt.hardware_backend.portable_cpu.kernel_build``.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

_HERE = Path(__file__).resolve().parent
# Installed from a wheel the sources lie beside this file, in a checkout at the repository's top level.
_SOURCE_FOLDERS = (_HERE / "csrc", _HERE.parents[4] / "sgl-kernel" / "csrc")

_COMMON_FLAGS = ("-O3", "-std=c++20", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi")

# For `make kernels-asan`: the process must then preload the sanitizers' libraries.
_SANITIZER_FLAGS = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
)

# Seconds between two progress lines while compiling.
_PROGRESS_INTERVAL = 15.0


class KernelBuildError(RuntimeError):
    """The kernels cannot be compiled or loaded here; the message says why."""


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """One way to compile the sources.

    Attributes:
        name: as in ``SGLANG_CPU_ISA`` and in the operators' namespace ``torch.ops.sglang_cpu_<name>``.
        macros: what ``at::vec`` selects its vector width by.
        flags: compiler flags that allow the instructions.
    """

    name: str
    macros: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def namespace(self) -> str:
        return f"sglang_cpu_{self.name}"

    @property
    def compiler_flags(self) -> list[str]:
        macros = (*self.macros, f"PORTABLE_CPU_LIBRARY={self.namespace}")
        sanitizers = _SANITIZER_FLAGS if os.environ.get("SGLANG_CPU_KERNEL_SANITIZE") == "1" else ()
        return [*_COMMON_FLAGS, *(f"-D{macro}" for macro in macros), *self.flags, *sanitizers]


_AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")
_AVX512_FLAGS = (*_AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# Used only where the CPU turns out to have it; a compiler emits no such instruction by itself.
_AMX_FLAGS = ("-mamx-tile", "-mamx-bf16")
_AVX512_MACROS = ("CPU_CAPABILITY=AVX512", "CPU_CAPABILITY_AVX512")

INSTRUCTION_SETS = {
    isa.name: isa
    for isa in (
        InstructionSet("avx512_bf16", _AVX512_MACROS, (*_AVX512_FLAGS, "-mavx512bf16", *_AMX_FLAGS)),
        InstructionSet("avx512", _AVX512_MACROS, _AVX512_FLAGS),
        InstructionSet("avx2", ("CPU_CAPABILITY=AVX2", "CPU_CAPABILITY_AVX2"), _AVX2_FLAGS),
        InstructionSet(
            "neon", ("CPU_CAPABILITY=NEON", "CPU_CAPABILITY_NEON", "AT_BUILD_ARM_VEC256_WITH_SLEEF"), ()
        ),
        InstructionSet("generic", ("CPU_CAPABILITY=DEFAULT", "CPU_CAPABILITY_DEFAULT"), ()),
    )
}


def supported_instruction_sets() -> list[InstructionSet]:
    """What this CPU can run, widest first; ``generic`` always."""
    cpu = torch.cpu.get_capabilities()
    names = []
    if cpu.get("architecture") == "x86_64":
        avx2 = all(cpu.get(flag) for flag in ("avx2", "fma3", "f16c"))
        avx512 = avx2 and all(cpu.get(f"avx512_{part}") for part in ("f", "bw", "dq", "vl"))
        if avx512 and cpu.get("avx512_bf16"):
            names.append("avx512_bf16")
        if avx512:
            names.append("avx512")
        if avx2:
            names.append("avx2")
    elif cpu.get("architecture") == "aarch64":
        names.append("neon")
    return [INSTRUCTION_SETS[name] for name in (*names, "generic")]


def chosen_instruction_set() -> InstructionSet:
    """The widest supported set, or the one that ``SGLANG_CPU_ISA`` names."""
    supported = supported_instruction_sets()
    name = os.environ.get("SGLANG_CPU_ISA")
    if not name:
        return supported[0]
    for isa in supported:
        if isa.name == name:
            return isa
    raise KernelBuildError(
        f"SGLANG_CPU_ISA={name!r}: not available on this CPU; choose one of "
        + ", ".join(isa.name for isa in supported)
    )


def source_folder() -> Path:
    """Where the C++ sources are.

    Raises:
        KernelBuildError: if the installation lacks them.
    """
    for folder in _SOURCE_FOLDERS:
        if (folder / "library.cpp").is_file():
            return folder
    raise KernelBuildError(
        f"the kernel sources are missing from {_SOURCE_FOLDERS[0]}; reinstall sglang-blend"
    )


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    explicit = os.environ.get("SGLANG_CPU_KERNEL_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sglang-blend" / "cpu-kernels"


@cache
def _compiler_identity() -> str:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise KernelBuildError(f"no C++ compiler ({compiler!r}); install g++ 11 or newer, or set CXX")
    if sys.platform != "linux":
        raise KernelBuildError(f"the kernels are built on Linux only, not on {sys.platform}")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return version.stdout.partition("\n")[0]


def _build_key(isa: InstructionSet) -> str:
    digest = hashlib.sha256()
    for part in (torch.__version__, _compiler_identity(), *isa.compiler_flags, *_link_flags()):
        digest.update(part.encode() + b"\0")
    for path in sorted(source_folder().iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _link_flags() -> list[str]:
    """Link against the OpenMP runtime that PyTorch has loaded.

    A second one in the process would keep a second pool of threads, and both would spin for the cores.
    """
    folder = Path(torch.__file__).parent / "lib"
    bundled = sorted(folder.glob("libgomp*.so*"))
    return [f"-L{folder}", f"-l:{bundled[0].name}"] if bundled else ["-lgomp"]


@cache
def load_namespace(isa_name: str) -> str:
    """Load the kernels for one instruction set, compiling them if the cache has none.

    Returns:
        The name under ``torch.ops`` that holds the operators.

    Raises:
        KernelBuildError: no compiler, no sources, no writable cache, a cache that others can write, or the
            compiler failed.
    """
    isa = INSTRUCTION_SETS[isa_name]
    folder = _private_folder(f"{isa.name}-{_build_key(isa)}")
    library = folder / f"{isa.namespace}.so"
    complete = folder / "complete.json"  # written last: the library beside it is whole
    if not complete.is_file():
        with _exclusive(folder):
            if not complete.is_file():
                seconds = _compile(isa, folder)
                library.chmod(0o700)  # whatever the umask
                _write_atomically(complete, {"torch": torch.__version__, "seconds": round(seconds, 1)})
                return isa.namespace  # compiling also loads
    _refuse_foreign(library)
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise KernelBuildError(f"cannot load {library} ({error}); delete {folder} and start again") from error
    return isa.namespace


def _private_folder(name: str) -> Path:
    """Make a folder of the cache, or find it there.

    Raises:
        KernelBuildError: it cannot be made, or somebody else could have written what is in it.
    """
    cache = cache_folder().resolve()
    folder = cache / name
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        if not folder.is_dir():  # on a read-only disk the kernels may be there already
            raise KernelBuildError(
                f"cannot write the kernel cache {folder} ({error.strerror}); set SGLANG_CPU_KERNEL_CACHE"
            ) from error
    _refuse_foreign(cache)
    _refuse_foreign(folder)
    return folder


def _refuse_foreign(path: Path) -> None:
    """Refuse what somebody else may have written.

    Raises:
        KernelBuildError: it is missing, a link or another user's, or others may write it.
    """
    try:
        found = path.lstat()
    except OSError as error:
        raise KernelBuildError(f"cannot read {path} ({error.strerror})") from error
    if found.st_uid != os.geteuid() or stat.S_ISLNK(found.st_mode):
        problem = "is not this user's own"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = "can be written by others"
    else:
        return
    raise KernelBuildError(
        f"{path} {problem}, so its code is not run; remove it, or set SGLANG_CPU_KERNEL_CACHE to a folder"
        " that only you can write"
    )


def _compile(isa: InstructionSet, folder: Path) -> float:
    cpp_extension = _import_cpp_extension()
    sources = sorted(source_folder().glob("*.cpp"))
    # PyTorch's own lock outlives a killed process and would be waited for without end; ours does not.
    (folder / "lock").unlink(missing_ok=True)
    start = time.monotonic()
    with _progress(isa, folder, len(sources)):
        try:
            cpp_extension.load(
                name=isa.namespace,
                sources=[str(source) for source in sources],
                extra_cflags=isa.compiler_flags,
                extra_ldflags=_link_flags(),
                build_directory=str(folder),
                is_python_module=False,
                verbose=False,
            )
        except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
            log = folder / "build.log"
            log.write_text(str(error))
            raise KernelBuildError(f"compiling failed, see {log}") from error
    return time.monotonic() - start


def _import_cpp_extension() -> ModuleType:
    # Importing it warns that the CUDA toolkit lacks a GPU, which nobody here needs to know.
    torch_logger = logging.getLogger("torch.utils.cpp_extension")
    level = torch_logger.level
    torch_logger.setLevel(logging.ERROR)
    try:
        from torch.utils import cpp_extension
    finally:
        torch_logger.setLevel(level)
    return cpp_extension


@contextmanager
def _progress(isa: InstructionSet, folder: Path, files: int) -> Iterator[None]:
    """Say once what is going on, then every so often how far it is."""
    _say(f"compiling CPU kernels for {isa.name}: {files} files, about a minute, only this once ({folder})")
    done = threading.Event()
    start = time.monotonic()

    def report() -> None:
        while not done.wait(_PROGRESS_INTERVAL):
            finished = len(list(folder.glob("*.o")))
            _say(f"compiling CPU kernels: {finished} of {files} files, {time.monotonic() - start:.0f} s")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    _say(f"CPU kernels ready after {time.monotonic() - start:.0f} s")


def _say(text: str) -> None:
    """To the terminal, not the log: this happens before SGLang configures logging."""
    print(f"[sglang-blend] {text}", file=sys.stderr, flush=True)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One process at a time; the operating system releases it if the holder dies."""
    with open(folder / "flock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write_atomically(path: Path, record: dict[str, object]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as handle:
        json.dump(record, handle)
    os.replace(handle.name, path)


def load_preferred() -> str | None:
    """Namespace of this machine's kernels, or None (after one line saying why) to use PyTorch operators.

    Raises:
        KernelBuildError: only with ``SGLANG_CPU_KERNELS=require``.
        ValueError: if ``SGLANG_CPU_KERNELS`` is none of auto, off, require.
    """
    mode = _mode()
    if mode == "off":
        return None
    try:
        return load_namespace(chosen_instruction_set().name)
    except KernelBuildError as error:
        if mode == "require":
            raise
        _say(f"no CPU kernels: {error}. Using PyTorch operators, which are correct but slower.")
        return None


def _mode() -> str:
    mode = os.environ.get("SGLANG_CPU_KERNELS", "auto")
    if mode not in ("auto", "off", "require"):
        raise ValueError(f"SGLANG_CPU_KERNELS={mode!r}: choose auto, off or require")
    return mode


@dataclass(frozen=True, slots=True)
class KernelState:
    """What a start would find and do about the kernels.

    Attributes:
        mode: of ``SGLANG_CPU_KERNELS``.
        isa: name of the instruction set; "" where none was chosen.
        folder: where the build is or would be; None where that cannot be told.
        compiled: a whole build is there.
        problem: why a start would use PyTorch operators or fail, with the remedy; "" where it would not.
    """

    mode: str
    isa: str = ""
    folder: Path | None = None
    compiled: bool = False
    problem: str = ""


def kernel_state() -> KernelState:
    """Look at the kernels without compiling, loading or writing anything."""
    mode, isa, folder = os.environ.get("SGLANG_CPU_KERNELS", "auto"), "", None
    try:
        if _mode() == "off":
            return KernelState(mode)
        chosen = chosen_instruction_set()
        isa, cache = chosen.name, cache_folder().resolve()
        folder = cache / f"{isa}-{_build_key(chosen)}"
        compiled = (folder / "complete.json").is_file()
        library = folder / f"{chosen.namespace}.so"
        for path in (cache, folder, library) if compiled else (cache, folder):
            if compiled or path.exists():
                _refuse_foreign(path)
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not compiled and not os.access(there, os.W_OK | os.X_OK):
            raise KernelBuildError(f"cannot write the kernel cache {folder}; set SGLANG_CPU_KERNEL_CACHE")
    except (KernelBuildError, ValueError) as error:
        return KernelState(mode, isa, folder, problem=str(error))
    return KernelState(mode, isa, folder, compiled)


if __name__ == "__main__":
    os.environ["SGLANG_CPU_KERNELS"] = "require"
    print(load_preferred())
