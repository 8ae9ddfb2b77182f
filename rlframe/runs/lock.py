"""One process at a time works in a run directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from weakref import WeakSet

from rlframe.errors import SetupError

_HELD: WeakSet[RunLock] = WeakSet()


class RunLock:
    """Holds `<directory>/.lock` from `with` to its end, or to the end of the process, however it comes.

    The file holds JSON with pid, host and start time of the holder. It stays behind, and is no
    hindrance: the lock is the kernel's (flock), not the file. Children do not inherit it.

    Args:
      directory: of the run; exists.

    Raises:
      SetupError: on entering: another process holds the lock, the file cannot be written, or the file
        system cannot lock.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        path = self._directory / ".lock"
        try:
            # Python opens files so that exec closes them
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            _HELD.add(self)
            self._take(self._descriptor)
            _sign(self._descriptor)
        except OSError as error:
            self._close()
            raise SetupError(f"{path}: cannot be written: {error.strerror}") from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise SetupError(
                    f"{self._directory} is in use by {_signed(descriptor)}. Wait until it ends, stop "
                    "that process, or choose another --output"
                ) from error
            raise SetupError(
                f"{self._directory}: its file system cannot lock files ({error.strerror}), so two "
                "runs could destroy each other's checkpoints. Choose an --output on another file "
                "system, such as a local disk"
            ) from error

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None
        _HELD.discard(self)


def _sign(descriptor: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)


def _signed(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (ValueError, LookupError, TypeError):
        return "another process"  # which holds the lock and has not signed yet


def _let_go_in_child() -> None:
    """A forked child has the parent's descriptor, and would hold the lock after the parent's death."""
    for lock in list(_HELD):
        lock._close()


os.register_at_fork(after_in_child=_let_go_in_child)
