"""Ending a run at a place from which it can go on."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

_SIGNALS = {
    signal.SIGTERM: "SIGTERM",
    signal.SIGINT: "interrupted (Ctrl-C)",
    signal.SIGHUP: "SIGHUP (its terminal was closed)",
}


class StopRequest:
    """While active, notes SIGTERM, SIGINT and SIGHUP, which would end the process.

    The loop asks for `reason`. A second SIGINT ends at once, with KeyboardInterrupt. A signal that the
    process ignores, such as SIGINT in a script's background job or SIGHUP under nohup, stays ignored.
    Outside of the main thread, where Python handles no signals, there is the limit alone.

    Args:
      limit_minutes: wall time from entering until a stop is due; None for no limit.
    """

    def __init__(self, limit_minutes: float | None = None) -> None:
        self._limit = limit_minutes
        self._due: float | None = None
        self._noted: list[int] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if self._limit is not None:
            self._due = time.monotonic() + 60 * self._limit
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                # None stands for a handler that was installed in C: Python could not put it back
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def reason(self) -> str | None:
        """Why to stop, in words, or None: the first signal, or else the limit."""
        if self._noted:
            return _SIGNALS[signal.Signals(self._noted[0])]
        if self._due is not None and time.monotonic() >= self._due:
            return f"the limit of {self._limit:g} minute{'s' * (self._limit != 1)} is reached"
        return None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in self._noted:
            raise KeyboardInterrupt
        self._noted.append(number)
