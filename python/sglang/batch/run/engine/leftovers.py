"""What an engine leaves behind when it is killed: processes, temporary files, shared memory.

All of it can be told from what others own: the processes carry the job's id in their environment, their
temporary files lie in a folder of the job, and the names in /dev/shm follow from those files or from the
processes. Whoever holds the job's lock may therefore clear it without guessing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil

JOB_VARIABLE = "SGLANG_BATCH_JOB"
"""Environment variable that names the job whose engine a process belongs to."""

SHARED_MEMORY = Path("/dev/shm")

PATIENCE = 10.0
"""Seconds that killed processes get to disappear."""


def engine_environment(job: str) -> dict[str, str]:
    """Make the environment of a job's engine; its folder for temporary files is there then, mode 0700."""
    folder = temporary_folder(job)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder}: is not ours; remove it")
    folder.chmod(0o700)
    return {**os.environ, JOB_VARIABLE: job, "TMPDIR": str(folder)}


def temporary_folder(job: str) -> Path:
    """Name the folder of a job's temporary files: short, since sockets lie in it, and nobody else's."""
    return Path(tempfile.gettempdir()) / f"sglang-{job}"


def clear(job: str) -> int:
    """Kill what is left of a job's engine and remove its files; returns how many processes were killed."""
    processes = engine_processes(job)
    for process in processes:
        _kill(process)
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    _remove_shared_memory(temporary_folder(job), [process.pid for process in processes])
    if not alive:
        shutil.rmtree(temporary_folder(job), ignore_errors=True)
    return len(processes)


def engine_processes(job: str) -> list[psutil.Process]:
    """Find the processes of a job's engine, this process apart."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(JOB_VARIABLE) == job:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # somebody else's, or just gone
    return found


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass


def _remove_shared_memory(folder: Path, pids: Iterable[int]) -> None:
    """Remove segments that upstream names after sockets (`shm_path_for`) or processes (`make_shm_name`)."""
    names = []
    for path in folder.glob("*") if folder.is_dir() else ():
        digest = hashlib.blake2s(f"ipc://{path}".encode(), digest_size=4).hexdigest()
        names.append(f"sglang_loads_{path.name}_{digest}.shm")
    for pid in pids:
        names += [path.name for path in SHARED_MEMORY.glob(f"sgl_shm_*_{pid}_*")]
    for name in names:
        (SHARED_MEMORY / name).unlink(missing_ok=True)
