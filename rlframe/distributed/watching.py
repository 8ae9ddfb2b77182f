"""A command in a child of its own, so that success is what it reports and not what the kernel says.

`os._exit(0)` in a plugin, `exec` of another program or `exit(0)` in C end a process with code 0 in the
middle of a run, and no handler in that process sees it. Its parent does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from rlframe.distributed.child import ENDED_EARLY, REPORTS
from rlframe.text import say

SIGNAL_NAMES = {number.value: number.name for number in signal.Signals}

_PASSED_ON = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT),
)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)  # opened here: a child between fork and exec should not load libraries


def die_with(parent: int) -> None:
    """In a child: let the kernel kill it when the parent dies."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it was asked
            os._exit(1)


def watched(work: Callable[[], None]) -> None:
    """Do a command's work in a child process, and end as it ended.

    The child is forked before anything is imported that has threads or a GPU, and leads a session of
    its own: each signal reaches it once, from here, whether it was sent to this process or came from
    the keyboard. It has this process's terminal, and dies with this process.

    A process that a launcher of ours has started is watched already; one under a debugger or profiler
    does the work itself, since they follow no child.

    Args:
      work: ends by SystemExit, whose code is that of the command.

    Raises:
      SystemExit: with the child's exit code; 128 + n if signal n ended it; 1 if it ended with 0
        although `work` had not.
    """
    if REPORTS in os.environ or sys.gettrace() or sys.getprofile():
        work()
        return
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # where it is ignored, nobody learns how a child ends
    heard, done = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(heard)
        os.setsid()
        die_with(parent)
        _work(work, done)
    os.close(done)
    sys.exit(_outcome(*_ending(child), finished=bool(_all_of(heard))))


def _work(work: Callable[[], None], done: int) -> None:
    try:
        work()
    except SystemExit as end:
        if not end.code:
            os.write(done, b".")
        raise


def _ending(child: int) -> tuple[int, list[int]]:
    """Wait for the child: (its exit code, negative for a signal; the signals passed on to it)."""
    passed: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        passed.append(number)
        os.kill(child, number)

    def pause(_: int, __: FrameType | None) -> None:
        os.kill(child, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)

    for number in (*_PASSED_ON, signal.SIGTSTP):
        if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGCONT:
            signal.signal(number, pause if number == signal.SIGTSTP else pass_on)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    for number in _PASSED_ON:  # from here on its number may be another process's
        signal.signal(number, signal.SIG_IGN)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), passed


def _all_of(heard: int) -> bytes:
    """What the child has written; what it has started may hold the other end open."""
    os.set_blocking(heard, False)
    try:
        return os.read(heard, 1)
    except BlockingIOError:
        return b""
    finally:
        os.close(heard)


def _outcome(code: int, passed: list[int], *, finished: bool) -> int:
    """The exit code to end with, and words where the child could not say any."""
    if code == 0 and not finished:
        say(f"error: the process {ENDED_EARLY}", err=True)
        return 1
    if code >= 0:
        return code
    name = SIGNAL_NAMES.get(-code, str(-code))
    if -code in passed:
        say(f"stopped by {name}", err=True)
    else:
        say(f"error: the process {killed_by(name)}", err=True)
    return 128 - code


def killed_by(name: str) -> str:
    """The end of a sentence on a process that a signal has ended."""
    message = f"was killed by {name}"
    return f"{message} (out of memory? `dmesg` would say so)" if name == "SIGKILL" else message
