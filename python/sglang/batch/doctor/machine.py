"""What the machine has left for an engine: cores, open files, memory and space."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from pathlib import Path

import psutil

from sglang.batch import smollm2
from sglang.batch.doctor.device import ownership
from sglang.batch.doctor.finding import Finding
from sglang.srt.blend import core

OPEN_FILES = 4096
"""An engine's sockets and the files of a model, with room to spare."""

ENGINES_OPEN_FILES = 65535
"""What SGLang raises its soft limit to, if the hard limit lets it."""

SHARED_MEMORY, TEMPORARY = 64 << 20, 256 << 20
"""Bytes that must be free in /dev/shm and in the folder of temporary files."""

LONGEST_FOLDER = 45
"""Characters. A socket's path has 107 at most, of which the names of a job and of a socket need the rest."""

BUSY = 0.5
"""Runnable threads per core from which a machine counts as shared."""

MIB, GIB = 1 << 20, 1 << 30


def machine(*, shared_memory: Path = Path("/dev/shm")) -> list[Finding]:
    """Look at cores, limits and space."""
    memory, larger = psutil.virtual_memory(), "docker run --shm-size=2g, or remount it larger"
    return [
        cores(len(os.sched_getaffinity(0)), os.getloadavg()[0]),
        Finding("machine", "memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"),
        open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        space("shared memory", shared_memory, SHARED_MEMORY, larger),
        temporary(Path(tempfile.gettempdir())),
    ]


def caches() -> list[Finding]:
    """Look at what earlier runs have left for later ones."""
    from huggingface_hub import constants

    ours = smollm2.cache_folder()
    planner = list(Path(core.__path__[0]).rglob("__pycache__/*.nbi"))
    compiled = f"{len(planner)} functions compiled" if planner else "to be compiled at the first start"
    return [
        folder("sglang-blend", ours, "set XDG_CACHE_HOME to a folder that you can write"),
        folder("Hugging Face", Path(constants.HF_HUB_CACHE), "set HF_HOME to a folder that you can write"),
        Finding("caches", "planner", os.environ.get("NUMBA_CACHE_DIR", compiled)),
    ]


def cores(usable: int, load: float) -> Finding:
    """Tell how many cores there are, and whether others use them.

    Args:
        load: runnable threads of the machine, over the last minute.
    """
    text = f"{usable} usable of {os.cpu_count()}, load average {load:.1f}"
    if load > BUSY * usable:
        text += ": shared with other work, so times will vary"
    return Finding("machine", "cores", text)


def open_files(soft: int, hard: int) -> Finding:
    """Check the limits of open files; SGLang raises the soft one where the hard one has room."""
    unlimited = resource.RLIM_INFINITY
    names = ["unlimited" if limit == unlimited else f"{limit:,}" for limit in (soft, hard)]
    text = f"{names[0]}, at most {names[1]}"
    raised = hard == unlimited or hard >= ENGINES_OPEN_FILES
    enough = raised or soft == unlimited or soft >= OPEN_FILES
    remedy = "" if enough else f"ulimit -n {OPEN_FILES}, or let root raise the hard limit (LimitNOFILE=)"
    return Finding("machine", "open files", text, remedy)


def space(name: str, where: Path, least: int, remedy: str) -> Finding:
    """Check that a folder has room and can be written.

    Args:
        least: bytes that must be free.
    """
    try:
        free = shutil.disk_usage(where).free
    except OSError as error:
        return Finding("machine", name, f"{where}: {error.strerror}", remedy)
    writable = os.access(where, os.W_OK | os.X_OK)
    text = f"{free / MIB:,.0f} MiB free in {where}{'' if writable else ', which cannot be written'}"
    return Finding("machine", name, text, "" if writable and free >= least else remedy)


def temporary(where: Path) -> Finding:
    """Check the folder of temporary files, in which sockets lie, too."""
    remedy = "set TMPDIR to a short path with room"
    found = space("temporary files", where, TEMPORARY, remedy)
    if len(str(where)) <= LONGEST_FOLDER:
        return found
    return Finding("machine", found.name, f"{found.value}: too long a path for sockets", remedy)


def folder(name: str, where: Path, remedy: str) -> Finding:
    """Check a cache that is written on demand: it, or the folder that it would be made in."""
    there = next(path for path in (where, *where.parents) if path.exists())
    writable = os.access(there, os.W_OK | os.X_OK)
    text = f"{where}, {ownership(where)}{'' if writable else f'; {there} cannot be written'}"
    return Finding("caches", name, text, "" if writable else remedy)
