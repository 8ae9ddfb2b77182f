"""Asking a plugin within a time limit, and finding the response on which it fails.

A call that does not return cannot be ended from outside: it is left in its thread, and the run ends. So
that the thread does not keep the process, `rlframe.distributed.ending` has the last word.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rlframe.distributed.ending import abandon
from rlframe.types import RewardBatch

GRACE = 5.0
"""Seconds beyond a limit after which a call that holds the interpreter ends the process."""

SEARCH = 10.0
"""Most seconds that the search for the response at fault takes where a call has no limit."""

_LONGEST = 1e9
"""Seconds that a thread can be waited for at a time; a little more than is asked overflows in C."""

_STDERR = 2  # the descriptor: where stderr is captured, its object has none


@dataclass(frozen=True)
class Answer:
    """What a call returned, or raised."""

    value: Any = None
    error: BaseException | None = None

    def result(self) -> Any:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.value


class TimeLimit:
    """One allowance of wall seconds for any number of calls, from now on.

    Args:
      seconds: None for no limit.
      name: of what is called, as a message about it calls it.
    """

    def __init__(self, seconds: float | None, *, name: str) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._name = name

    def call(self, function: Callable[[], Any]) -> Answer | None:
        """What a function came to; None if the time is over before it ends.

        Without a limit it runs in this thread. With one it runs in another, with this thread's gradient
        mode, precision and GPU, so that a limit changes no number.
        """
        if self._end is None:
            return _answer(function)
        left = min(self._end - time.monotonic(), _LONGEST)
        if left <= 0:
            return None
        found: list[Answer] = []
        surroundings = _surroundings()

        def work() -> None:
            with surroundings():
                found.append(_answer(function))

        # An extension that holds the interpreter, as `re` does in a search that explodes, stops every
        # thread, and with it whoever watches the time. This watchdog needs no interpreter: it writes
        # where each thread is and ends the process with exit code 1. It knows functions by their names.
        held = f"{self._name}: beyond its time_limit_seconds, without letting go of the interpreter"
        work.__code__ = work.__code__.replace(co_name=held)
        thread = threading.Thread(target=work, daemon=True)
        faulthandler.dump_traceback_later(left + GRACE, exit=True, file=_STDERR)
        try:
            thread.start()
            thread.join(left)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if not found:
            abandon(thread)
            return None
        return found[0]


def _answer(function: Callable[[], Any]) -> Answer:
    try:
        return Answer(function())
    except Exception as error:
        return Answer(error=error)
    except BaseException as error:  # such as SystemExit, at which a thread would end without a word
        if threading.current_thread() is threading.main_thread():
            raise
        return Answer(error=error)


def _surroundings() -> Callable[[], Any]:
    """Makes a context in which another thread computes as this one: torch keeps these per thread."""
    grad = torch.is_grad_enabled()
    kinds = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    precision = {
        kind: torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind)
    }
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    @contextmanager
    def entered() -> Iterator[None]:
        with ExitStack() as stack:
            if device is not None:
                torch.cuda.set_device(device)
            stack.enter_context(torch.set_grad_enabled(grad))
            for kind, dtype in precision.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            yield

    return entered


def culprit(
    ask: Callable[[RewardBatch], Any], batch: RewardBatch, error: BaseException, limit: TimeLimit
) -> str:
    """The first response on which a call fails alone, described: the run is over, so look for it.

    Prompts are tried one after the other with all of their samples, since a reward may compare
    them, and then each sample of the first that fails.

    Args:
      ask: the call, for a part of the batch.
      batch: on which it failed.
      error: what it raised then.
      limit: what is left of the time.
    """
    end = time.monotonic() + SEARCH
    groups: dict[int, list[int]] = {group: [] for group in batch.group_ids}
    for row, group in enumerate(batch.group_ids):
        groups[group].append(row)

    def fails(rows: Sequence[int]) -> bool | None:
        answer = limit.call(lambda: ask(batch.rows(rows))) if time.monotonic() < end else None
        return None if answer is None else type(answer.error) is type(error)

    for rows in groups.values():
        failed = fails(rows)
        if failed is None:
            return f"The time was over before the response was found; the first:\n{described(batch, 0)}"
        if failed:
            alone = next((row for row in rows if len(rows) > 1 and fails([row])), rows[0])
            return described(batch, alone)
    return f"No response fails alone; the first of {len(batch)}:\n{described(batch, 0)}"


def described(batch: RewardBatch, row: int) -> str:
    """A response and its prompt, as lines of a message."""
    return (
        f"  sample {row} of update {batch.update}, ended by {batch.stop_reasons[row].value}\n"
        f"  prompt:   {batch.prompts[row].text!r}\n"
        f"  response: {batch.response_texts[row]!r}"
    )
