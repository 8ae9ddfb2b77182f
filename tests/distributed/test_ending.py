"""How a process ends that threads of plugins would keep: real processes, the exit code that was due."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

SCRIPT = """
import atexit, re, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from rlframe.distributed import ending
ending.PATIENCE = 1.0

@ending.in_time
def main():
    atexit.register(lambda: print("left", flush=True))
    {body}
    sys.exit({code})

main()
"""

POOL = "ThreadPoolExecutor().submit(time.sleep, 600)"
THREAD = "threading.Thread(target=time.sleep, args=(600,), name='poller').start()"
ABANDONED = (
    "thread = threading.Thread(target=time.sleep, args=(600,), daemon=True); thread.start(); "
    "ending.abandon(thread)"
)


def ended(body: str, code: str) -> tuple[int, str, str, float]:
    """Exit code, stdout, stderr and seconds."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body, code=code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr, time.monotonic() - began


@pytest.mark.parametrize("code", ["0", "1", "5"])
@pytest.mark.parametrize("body", [POOL, THREAD], ids=["pool", "thread"])
def test_a_thread_that_hangs_does_not_keep_the_process(body: str, code: str) -> None:
    found, _, message, seconds = ended(body, code)
    assert found == int(code)
    assert "not waiting for threads that a plugin has left running: " in message
    assert seconds < 60


def test_an_abandoned_thread_is_not_waited_for_at_all() -> None:
    assert ended(ABANDONED, "1")[:3] == (1, "", "")


@pytest.mark.parametrize("body", ["ThreadPoolExecutor().submit(int).result()", "pass"])
@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("None", 0), ("3", 3), ("'no'", 1)])
def test_otherwise_a_process_ends_as_usual(body: str, code: str, expected: int) -> None:
    found, said, message, _ = ended(body, code)
    assert (found, said) == (expected, "left\n")
    assert "not waiting" not in message


def test_an_exit_handler_may_take_its_time() -> None:
    """Such as a tracker's upload of the last figures."""
    found, said, message, _ = ended("atexit.register(time.sleep, 2.5)", "0")
    assert (found, said, message) == (0, "left\n", "")
