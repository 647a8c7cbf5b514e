"""Who may work in a run folder: one command, and the workers to whom it has handed out jobs."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hfadapt.core.errors import RequestError

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What some network file systems answer."""
JOBS = ".jobs"
"""What is handed out, in the run folder."""
AT_ONCE = 1.0
LEASE = 180.0
"""Seconds that a worker waits for the one that had its job before: a file server gives the locks of a machine that is
gone back after a minute or two."""


class FolderLock:
    """A run folder, held by one command.

    Args:
        folder: The run folder.
        say: Tells people.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self._lock = FileLock(folder / ".lock", timeout=0)

    def acquire(self, following: Collection[str] = ()) -> None:
        """Takes it.

        Args:
            following: Jobs that an earlier command has handed out and that this one goes on with.

        Raises:
            RequestError: another command has it, or workers of one that has ended still do its jobs.
        """
        try:
            self._lock.acquire()
            locks = sorted((self.folder / JOBS).glob("*.lock"))
            busy = [path.stem for path in locks if path.stem not in following and _is_held(path)]
        except Timeout:
            raise RequestError(
                "another run is using this folder",
                place=str(self.folder),
                fix="wait for it to end, or give another folder with --runs",
            ) from None
        except (NotImplementedError, OSError) as error:
            _refuse_others(error)
            self.say(f"the file system of {self.folder} has no locks: see that no other run uses this folder")
            return
        if busy:
            self.release()
            raise RequestError(
                "jobs that an earlier command has handed out are still being done",
                place=str(self.folder / JOBS),
                got=", ".join(busy[:8]) + (f" and {len(busy) - 8} more" if len(busy) > 8 else ""),
                fix="wait for them to end (squeue, ray list tasks), or end them; then run the command again",
            )

    def release(self) -> None:
        """Gives it back."""
        self._lock.release()


@contextmanager
def job_lock(path: Path, say: Callable[[str], None], seconds: float = LEASE) -> Iterator[None]:
    """A job, held by one worker.

    Args:
        path: The job's file.
        say: Tells people.
        seconds: How long another worker may still have it.

    Raises:
        RequestError: another one has it for longer.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        try:
            lock.acquire(timeout=AT_ONCE)
        except Timeout:
            say(f"{path.stem}: waiting up to {seconds:.0f} s for the worker that had this job before to be gone")
            lock.acquire(timeout=seconds)
    except Timeout:
        fix = "see where that one runs, and end it"
        raise RequestError("another worker is doing this job", place=str(path), fix=fix) from None
    except (NotImplementedError, OSError) as error:
        _refuse_others(error)  # the command that has handed the job out has said that there are no locks
    try:
        yield
    finally:
        lock.release()


def _is_held(path: Path) -> bool:
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def _refuse_others(error: BaseException) -> None:
    """Raises an error that says something else than that there are no locks."""
    if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
        raise error
