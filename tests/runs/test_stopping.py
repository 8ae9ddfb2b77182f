from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rlframe.runs.stopping import StopRequest

NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def python_handles_signals() -> Iterator[None]:
    """As in a process that was started in the foreground."""
    before = {s: signal.getsignal(s) for s in NOTED}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers() -> list[object]:
    return [signal.getsignal(s) for s in NOTED]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGINT, "interrupted (Ctrl-C)"),
        (signal.SIGHUP, "SIGHUP (its terminal was closed)"),
    ],
    ids=str,
)
def test_a_signal_is_noted_instead_of_ending_the_process(
    number: signal.Signals, words: str
) -> None:
    with StopRequest() as stop:
        assert stop.reason() is None
        signal.raise_signal(number)
        assert stop.reason() == words
    assert stop.reason() == words


def test_a_second_interrupt_ends_at_once() -> None:
    before = handlers()
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert handlers() == before


def test_a_scheduler_may_repeat_itself_and_a_first_interrupt_is_noted_still() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.reason() == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handlers_are_those_of_before_again() -> None:
    def own(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, own)
    before = handlers()
    with StopRequest():
        assert own not in handlers()
    assert handlers() == before
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert handlers() == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_one_within_another_leaves_it_active() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            signal.raise_signal(signal.SIGINT)
        assert inner.reason()
        assert outer.reason() is None
        signal.raise_signal(signal.SIGINT)
        assert outer.reason()


@pytest.mark.parametrize("number", NOTED, ids=str)
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop.reason() is None
    assert signal.getsignal(number) is signal.SIG_IGN


@pytest.mark.parametrize(
    ("minutes", "words"), [(30, "30 minutes"), (1.0, "1 minute"), (0.5, "0.5 minutes")]
)
def test_the_limit_counts_from_the_beginning(
    minutes: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stop = StopRequest(minutes)
    now += 10_000
    with stop:
        assert stop.reason() is None
        now += 60 * minutes - 0.01
        assert stop.reason() is None
        now += 0.02
        assert stop.reason() == f"the limit of {words} is reached"


def test_a_signal_is_told_before_the_limit() -> None:
    with StopRequest(0) as stop:
        assert stop.reason() == "the limit of 0 minutes is reached"
        signal.raise_signal(signal.SIGTERM)
        assert stop.reason() == "SIGTERM"


def test_in_another_thread_there_is_the_limit_alone() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with StopRequest(0) as stop:
            seen.append((stop.reason(), handlers() == before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [("the limit of 0 minutes is reached", True)]
    assert handlers() == before


LOOP = """
import signal, time
from rlframe.runs.stopping import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.reason():
        time.sleep(0.01)
    print(stop.reason(), flush=True)
    time.sleep(0 if "TERM" in stop.reason() else 60)
"""


def test_a_process_ends_in_its_own_time_and_at_once_when_interrupted_twice() -> None:
    for number, words in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "interrupted (Ctrl-C)")):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"{words}\n"
        if number == signal.SIGINT:
            process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
        assert (process.returncode == 0) == (number == signal.SIGTERM)
