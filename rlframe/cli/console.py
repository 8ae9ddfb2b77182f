"""The command `rlframe` as a process: streams that cannot end a run, and a parent that watches it.

`main` does the work, and is what programs and tests call. `console` is what the shell starts.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TextIO

from rlframe.cli.main import main
from rlframe.distributed.ending import in_time
from rlframe.distributed.watching import watched
from rlframe.text import say

_RUNS = ("train", "resume")
"""Commands whose result lies in a directory, whatever became of their output."""


@in_time
def console() -> None:
    """Run the command that `sys.argv` names, and end the process with its exit code."""
    _open_missing_descriptors()
    out, err = Enduring(1), Enduring(2)
    sys.stdout, sys.stderr = _stream(out, sys.stdout), _stream(err, sys.stderr)
    watched(lambda: _command(out))


def _command(out: Enduring) -> None:
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        if out.lost is not None and out.lost.errno not in _NOBODY_READS:
            say(f"stdout could not be written, and is not complete: {out.lost.strerror}", err=True)
            if not end.code and not set(_RUNS) & set(sys.argv[1:3]):
                sys.exit(1)
        raise


_NOBODY_READS = (errno.EPIPE, errno.EIO)  # a pipe's other end is closed; a terminal is gone


class Enduring(io.RawIOBase):
    """Writes to a descriptor as long as that works, and drops the rest: output must not end a run.

    A disk may be full, the other end of a pipe closed, a terminal gone; a plugin's `print` would raise
    in the middle of a reward.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.lost: OSError | None = None
        """Why something could not be written, the first time."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: object) -> int:
        """All of it, or as if."""
        view = memoryview(data)  # type: ignore[arg-type]  # RawIOBase names no public type of it
        rest = view
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # whoever gave us the descriptor reads in his own time
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.lost = self.lost or error
                break
        return len(view)


def _stream(raw: Enduring, before: TextIO | None) -> TextIO:
    """A text stream like the one that Python made, which also writes what its encoding lacks."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=raw.fileno() == 2 or raw.isatty(),
    )


def _open_missing_descriptors() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed.

    Otherwise the next file that is opened, perhaps a checkpoint, gets that number, and what C libraries
    write to stdout or stderr ends up in it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
