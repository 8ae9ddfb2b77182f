"""Start the processes of a run on this machine, watch over them, and end them together.

torchrun would import torch in the parent (2.4 s before the first rank starts), tell a failure in a
table that lacks the rank's own words, and leave its workers behind when it is killed.
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlframe.distributed.child import (
    ENDED_EARLY,
    REPORTS,
    read_report,
    report_path,
    unfinished_path,
)
from rlframe.distributed.watching import SIGNAL_NAMES, die_with, killed_by
from rlframe.text import say

SETTLE = 1.0
"""Seconds that the others have to end by themselves, once a rank has failed."""
GRACE = 2.5
"""Seconds from SIGTERM to SIGKILL, after a failure."""
LEAVE = 300.0
"""Seconds that the others have to save what they save, once a rank has left after a signal."""

_TICK = 0.1  # seconds
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PIPE = 65536  # bytes that a pipe holds


@dataclass(frozen=True)
class Ended:
    """How a launch ended."""

    exit_code: int
    """Of the rank that failed first, 128 + n for signal n; 0 if none failed."""
    remedy: str | None = None
    """The change of the recipe, key=value, with which that rank says the run could go on; None if it
    knows of none, or the run was asked to stop."""


def launch(command: Sequence[str], *, processes: int, threads: int | None = None) -> Ended:
    """Run copies of a command, as a process group of torch.distributed, until all have ended.

    Rank 0 has this process's stdout and stderr. The others' stdout is dropped, and each line of
    their stderr is shown behind `[rank N]`. When a rank fails the others are ended, and its error is
    reported on stderr: that of the rank which failed first and not because of another. SIGINT, SIGTERM
    and SIGHUP are passed on once, and then the ranks are waited for; a later SIGINT kills them. No
    rank outlives this process.

    Args:
      command: program and arguments, the same for all ranks.
      processes: how many.
      threads: OMP_NUM_THREADS of each; if None what the environment says, else cores / processes.
    """
    with (
        _signals() as received,
        _reserved_port() as port,
        tempfile.TemporaryDirectory(prefix="rlframe-") as reports,
    ):
        shared = _environment(processes, threads) | {"MASTER_PORT": str(port), REPORTS: reports}
        ranks: list[_Rank] = []
        try:
            for number in range(processes):
                ranks.append(_Rank(number, command, shared, Path(reports)))
            watch = _Watch(ranks, received)
            watch.until_all_have_ended()
        finally:
            for rank in ranks:
                rank.end()
        _show_cursor()
        return watch.tell()


def _show_cursor() -> None:
    """A live display that was killed leaves the cursor of the terminal hidden."""
    if sys.stdout is not None and sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h")


def _environment(processes: int, threads: int | None) -> dict[str, str]:
    """What all ranks find in their environment."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = max(1, cores // processes)
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads or os.environ.get("OMP_NUM_THREADS") or share),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
    }


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A port that nobody is given while rank 0 is on its way to listen there.

    The socket is bound and never listens: the kernel hands its port to no one who asks for any port,
    and still lets rank 0 bind it, as both set SO_REUSEADDR.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(("", 0))
        yield bound.getsockname()[1]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that arrive instead of ending this process; one that was ignored stays ignored."""
    received: list[int] = []
    before = {}
    for number in _PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, lambda got, _: received.append(got))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Failure:
    """How a rank failed: in its own words or, where it has left none, in those of the launcher."""

    rank: int
    exit_code: int
    message: str
    time: float
    """Monotonic seconds."""
    consequence: bool
    """It failed because another rank was gone."""
    reported: bool
    """The words are its own."""
    remedy: str | None = None
    """What it says the run could resume with."""
    killed: bool = False
    """It ended by a signal."""

    def text(self) -> str:
        """The words, with the rank in front."""
        return f"rank {self.rank}: {self.message}" if self.reported else self.message


class _Rank:
    """One process, at the head of a process group of its own."""

    def __init__(
        self, number: int, command: Sequence[str], shared: Mapping[str, str], reports: Path
    ) -> None:
        self.number = number
        self.ended = False
        self.failure: _Failure | None = None
        self._report = report_path(reports, number)
        self._unfinished_work = unfinished_path(reports, number)
        self._unfinished_work.touch()
        self._unfinished = b""
        first = number == 0
        self._process = subprocess.Popen(
            command,
            env={**shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            stdin=subprocess.DEVNULL,
            stdout=None if first else subprocess.DEVNULL,
            stderr=None if first else subprocess.PIPE,
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),
        )
        self.stderr = self._process.stderr
        if self.stderr is not None:
            os.set_blocking(self.stderr.fileno(), False)

    def hear(self) -> tuple[list[str], bool]:
        """New lines of its stderr, marked with its number, and whether they were the last."""
        assert self.stderr is not None
        try:
            read = os.read(self.stderr.fileno(), _PIPE)
        except BlockingIOError:
            return [], False
        *lines, self._unfinished = (self._unfinished + read).split(b"\n")
        if not read and self._unfinished:
            lines.append(self._unfinished)
        # Of a bar that redraws its line, the last state.
        texts = (line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for line in lines)
        return [f"[rank {self.number}] {text}" for text in texts], not read

    def look(self) -> None:
        """Learn whether it has ended or failed: after its report a rank may take a while to end."""
        # Unreaped until `end`, so that the number is given to nobody else.
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self.ended = found is not None
        if self.failure is not None:
            return
        if (report := read_report(self._report)) is not None:
            self.failure = _Failure(
                self.number,
                report.exit_code,
                report.message,
                report.time,
                consequence=report.lost_peer,
                reported=True,
                remedy=report.remedy,
            )
        elif found is not None and (found.si_status != 0 or self._unfinished_work.exists()):
            self.failure = self._unreported(found.si_status, found.si_code != os.CLD_EXITED)

    def _unreported(self, status: int, killed: bool) -> _Failure:
        if killed:
            message = killed_by(SIGNAL_NAMES.get(status, str(status)))
            message += ". Fewer --processes need less" if status == signal.SIGKILL else ""
        elif status == 0:
            message = ENDED_EARLY
        else:
            message = f"ended with exit code {status}; see what it wrote"
        return _Failure(
            self.number,
            128 + status if killed else max(status, 1),
            f"error: rank {self.number} {message}",
            time.monotonic(),
            consequence=killed and status == signal.SIGABRT,  # how C++ ends when a peer is gone
            reported=False,
            killed=killed,
        )

    def signal(self, number: int) -> None:
        """Send a signal to the process, and SIGKILL to all that it has started, too."""
        if number == signal.SIGKILL:
            os.killpg(self._process.pid, number)
        else:
            os.kill(self._process.pid, number)

    def end(self) -> None:
        """Leave nothing of it, nor of what it has started."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        if self.stderr is not None:
            self.stderr.close()


class _Watch:
    """Waits for the ranks, and ends them all once one has failed."""

    def __init__(self, ranks: Sequence[_Rank], received: list[int]) -> None:
        self._ranks = ranks
        self._received = received
        self._asked: int | None = None  # the signal that was passed on
        self._term_at = self._kill_at = math.inf  # monotonic seconds
        self._ended_at = math.inf  # when this launcher began to end them
        self._held: list[tuple[_Rank, str]] = []

    def until_all_have_ended(self) -> None:
        """Relay, pass on signals, and end what has to be ended."""
        with closing(selectors.DefaultSelector()) as selector:
            speaking = [rank for rank in self._ranks if rank.stderr is not None]
            for rank in speaking:
                selector.register(rank.stderr or -1, selectors.EVENT_READ)
            while not all(rank.ended for rank in self._ranks):
                selector.select(_TICK)
                self._pass_on()
                for rank in self._ranks:
                    rank.look()
                for rank in [rank for rank in speaking if self._relay(rank)]:
                    selector.unregister(rank.stderr or -1)
                    speaking.remove(rank)
                self._decide()
                self._act()

    def tell(self) -> Ended:
        """Say on stderr what went wrong, the cause first."""
        failures = [rank.failure for rank in self._ranks if rank.failure is not None]
        failures.sort(key=lambda failure: (failure.consequence, failure.time))
        own = [failure for failure in failures if failure.time <= self._ended_at]
        if self._asked is not None and all(self._stopped(f) or f.consequence for f in own):
            stops = [f for f in own if self._stopped(f)]
            return Ended(self._tell_stop(self._asked, stops, failures))
        if not own:
            return Ended(0)
        first, *others = own
        by_all = len(failures) == len(self._ranks) and {f.message for f in failures} == {
            first.message
        }
        reports = {first.message: first.message if by_all else first.text()}
        reports |= {
            f.message: f.text() for f in others if not (f.consequence or f.message in reports)
        }
        # What a rank says when it is ended, or when its peer is gone, is not worth the reader's time.
        worth = {failure.rank for failure in own if not failure.consequence}
        held = [line for rank, line in self._held if rank.number in worth]
        for text in (*reports.values(), *held):
            say(text, err=True)
        return Ended(first.exit_code, first.remedy if self._asked is None else None)

    def _tell_stop(self, asked: int, stops: list[_Failure], failures: list[_Failure]) -> int:
        """The same where the ranks were asked to stop and did."""
        if not failures:
            return 0
        usual = "interrupted" if asked == signal.SIGINT else f"stopped by {SIGNAL_NAMES[asked]}"
        words = [failure.message for failure in stops if failure.reported]
        say((words or [usual])[0], err=True)
        return stops[0].exit_code if stops else 128 + asked

    def _stopped(self, failure: _Failure) -> bool:
        """Whether a rank ended as it was asked to."""
        return self._asked is not None and failure.exit_code in (128 + self._asked, 130)

    def _relay(self, rank: _Rank) -> bool:
        """Show what a rank says, or hold it if another has failed; True once it has said all."""
        lines, last = rank.hear()
        if any(other.failure is not None for other in self._ranks if other is not rank):
            self._held += [(rank, line) for line in lines]
        else:
            for line in lines:
                say(line, err=True)
        return last

    def _pass_on(self) -> None:
        while self._received:
            number = self._received.pop(0)
            if self._asked is None:
                self._asked = number
                self._signal(number)
            elif number == signal.SIGINT:
                self._kill_at = 0

    def _decide(self) -> None:
        """Set the times at which those that are left are ended."""
        for rank in self._ranks:
            failure = rank.failure
            if failure is not None and (failure.killed or not self._stopped(failure)):
                self._term_at = min(self._term_at, failure.time + SETTLE)
                self._kill_at = min(self._kill_at, failure.time + SETTLE + GRACE)
            elif rank.ended and self._asked is not None:
                self._kill_at = min(self._kill_at, time.monotonic() + LEAVE)

    def _act(self) -> None:
        now = time.monotonic()
        if now >= self._term_at and self._ended_at == math.inf:
            self._signal(signal.SIGTERM)
            self._ended_at = now
        if now >= self._kill_at:
            self._signal(signal.SIGKILL)
            self._ended_at = min(self._ended_at, now)

    def _signal(self, number: int) -> None:
        for rank in self._ranks:
            rank.signal(number)
