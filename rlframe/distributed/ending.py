"""The end of a process that plugins' threads would not let end.

Python waits for every thread that is no daemon, idle or hanging, and so do the pools of
`concurrent.futures`. A thread that is a daemon is killed at its next step while the interpreter
is taken down, which ends the process with SIGABRT if it is in C++ then. Both would replace an
exit code that was already decided.

Imports no torch: the command line reads this for every command.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from rlframe.text import say

PATIENCE = 5.0
"""Seconds that threads have to end by themselves, once the command has ended."""

_abandoned: list[threading.Thread] = []


def abandon(thread: threading.Thread) -> None:
    """Note that a thread may never return: nothing waits for it, the end of the process included."""
    _abandoned.append(thread)


def in_time(command: Callable[[], None]) -> Callable[[], None]:
    """Make a function that ends by SystemExit, the whole of a program, end although threads do not.

    Where it is called by something else than the program, such as a test, nothing is done.
    """

    @functools.wraps(command)
    def ended() -> None:
        program = sys._getframe(1).f_globals.get("__name__") == "__main__"
        try:
            command()
        except SystemExit as end:
            if program:
                _see_to_the_end(end.code)
            raise

    return ended


def _see_to_the_end(code: object) -> None:
    number = code if isinstance(code, int) else int(code is not None)
    if any(thread.is_alive() for thread in _abandoned):
        _end(number)
    threading.Thread(target=_after_patience, args=(number,), daemon=True).start()


def _after_patience(code: int) -> None:
    time.sleep(PATIENCE)
    main = threading.main_thread()
    waiting = [t for t in threading.enumerate() if not t.daemon and t is not main]
    if waiting:  # else it is an exit handler that takes its time, such as a tracker's last upload
        names = ", ".join(thread.name for thread in waiting)
        with suppress(OSError, ValueError):
            say(f"not waiting for threads that a plugin has left running: {names}", err=True)
        _end(code)


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, full, or None
            stream.flush()
    os._exit(code)
