"""The files of a job: what lies beside the output, under which names, and how they get there."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sglang.batch.run.journal import Log
from sglang.batch.usage import BadUsage

ERRORS_IN_OUTPUT = "-"
"""Value of `--errors` that puts error records into the output."""


@dataclass(frozen=True)
class JobFiles:
    """Names of a job's files.

    Attributes:
        output: where answers are at the end; a real path, so that each output has one set of files.
        errors: where error records are at the end; None for the output.
    """

    output: Path
    errors: Path | None

    @classmethod
    def of(cls, output: Path, errors: str | None) -> JobFiles:
        """Resolve what the user named.

        Args:
            errors: value of `--errors`; None for the default name.
        """
        output = output.resolve()
        if errors == ERRORS_IN_OUTPUT:
            return cls(output, None)
        return cls(output, Path(errors).resolve() if errors is not None else _beside(output, "errors.jsonl"))

    @property
    def parquet(self) -> bool:
        """Whether the output is a Parquet file, by its name."""
        return self.output.suffix == ".parquet"

    @property
    def answers(self) -> Path:
        """The log of answers at the end: the output, or the records that a Parquet output is made of."""
        return _beside(self.output, "jsonl") if self.parquet else self.output

    @property
    def journal(self) -> Path:
        """The journal; SQLite keeps two more files beside it while it is open."""
        return _beside(self.output, "journal")

    @property
    def lock(self) -> Path:
        """The file whose lock a run holds; it is never removed."""
        return _beside(self.output, "lock")

    @property
    def work(self) -> Path:
        """A folder that exists while there is something to do: spools of what cannot be read in place."""
        return _beside(self.output, "work")

    def spool(self, index: int) -> Path:
        """The lines of input number `index`, where they cannot be read in place."""
        return self.work / f"input-{index}.jsonl"

    @property
    def logs(self) -> dict[Log, Path]:
        """Final names of the record logs: one, or two."""
        return {Log.ANSWERS: self.answers} | ({} if self.errors is None else {Log.ERRORS: self.errors})

    def _results(self) -> tuple[Path, ...]:
        """Final names, each once."""
        return tuple(dict.fromkeys((self.output, *self.logs.values())))

    def check_free(self) -> None:
        """Check that nothing lies under the names of the output where there is no journal.

        Raises:
            BadUsage: something does.
        """
        for path in () if self.journal.exists() else self._results():
            for name in (path, partial(path)):
                if name.exists():
                    raise BadUsage(
                        f"{name}: exists, and there is no {self.journal.name} to continue it by; choose"
                        " another output, or pass --restart to set it aside"
                    )

    def make_work(self) -> None:
        """Make the work folder.

        Raises:
            OSError: there is something else under its name, or it belongs to somebody else.
        """
        self.work.mkdir(mode=0o700, exist_ok=True)
        found = self.work.lstat()
        if self.work.is_symlink() or found.st_uid != os.geteuid():
            raise PermissionError(f"{self.work}: is not ours; remove it")
        self.work.chmod(0o700)

    def set_aside(self) -> list[Path]:
        """Rename all files of an earlier job from OUT... to OUT.old..., over those of the one before it.

        A partial file is OUT.old, too, unless there is a complete one beside it.

        Returns:
            The new names of answers and errors.
        """
        kept = []
        for path in self._results():
            names = (path, partial(path))
            for name, final in zip(filter(Path.exists, names), names, strict=False):
                old = _beside(final, "old")
                os.replace(name, old)
                kept.append(old)
            finishing(path).unlink(missing_ok=True)
        old_journal = _beside(self.output, "old.journal")
        for suffix in ("-wal", "-shm", ""):  # the journal last: without it there is nothing to continue
            Path(f"{old_journal}{suffix}").unlink(missing_ok=True)
        for suffix in ("-wal", "-shm", ""):
            if Path(f"{self.journal}{suffix}").exists():
                os.replace(f"{self.journal}{suffix}", f"{old_journal}{suffix}")
        self.remove_work()
        sync_folder(self.output.parent)
        return kept

    def remove_history(self) -> None:
        """Remove the journal, and what only a continued job would read."""
        self.remove_journal()
        if self.parquet:
            self.answers.unlink(missing_ok=True)

    def remove_journal(self) -> None:
        """Remove the journal; the job cannot be continued then."""
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.journal}{suffix}").unlink(missing_ok=True)

    def remove_work(self) -> None:
        """Remove the work folder with all in it."""
        if self.work.is_symlink():
            self.work.unlink()
        else:
            shutil.rmtree(self.work, ignore_errors=True)


def partial(path: Path) -> Path:
    """Name a record log until it is complete."""
    return _beside(path, "partial")


def finishing(path: Path) -> Path:
    """Name a record log that is being written anew."""
    return _beside(path, "finish")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def sync_folder(folder: Path) -> None:
    """Return when names that were made, changed or removed in a folder are on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
