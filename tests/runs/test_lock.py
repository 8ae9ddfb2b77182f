from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rlframe.errors import SetupError
from rlframe.runs.lock import RunLock

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from rlframe.runs.lock import RunLock

directory, child = Path(sys.argv[1]), sys.argv[2]
with RunLock(directory):
    pid = 0
    if child == "program":
        # close_fds=False: nothing but close-on-exec keeps the descriptor from it
        pid = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                               close_fds=False, stdout=subprocess.DEVNULL).pid
    elif child == "fork":
        pid = os.fork()
        if not pid:
            os.close(1)
            time.sleep(60)
            os._exit(0)
    elif child == "fork that leaves":
        pid = os.fork()
        if not pid:
            sys.exit()
        os.waitpid(pid, 0)
    print(pid, flush=True)
    time.sleep(60)
"""


@contextmanager
def held(directory: Path, child: str = "none") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the lock, and the pid of a child of its."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), child], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    child_pid = int(holder.stdout.readline())
    try:
        yield holder, child_pid
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def take(directory: Path) -> None:
    with RunLock(directory):
        pass


def test_a_second_holder_is_told_who_holds_it_and_what_to_do(tmp_path: Path) -> None:
    with held(tmp_path) as (holder, _):
        with pytest.raises(SetupError) as caught:
            take(tmp_path)
        text = str(caught.value)
        since = json.loads((tmp_path / ".lock").read_text())["started"]
        assert f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}" in text
        assert f"since {since}" in text
        assert "Wait until it ends, stop that process, or choose another --output" in text
        assert datetime.now(UTC) - datetime.fromisoformat(since) < timedelta(minutes=1)
        assert caught.value.exit_code == 5


def test_being_refused_changes_nothing(tmp_path: Path) -> None:
    with held(tmp_path) as (holder, _):
        for _ in range(2):
            with pytest.raises(SetupError, match=f"process {holder.pid} "):
                take(tmp_path)


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    with held(tmp_path) as (holder, _):
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        take(tmp_path)


@pytest.mark.parametrize("child", ["program", "fork"])
def test_a_child_that_outlives_the_process_does_not_hold_it(child: str, tmp_path: Path) -> None:
    with held(tmp_path, child) as (holder, child_pid):
        try:
            with pytest.raises(SetupError):
                take(tmp_path)
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            os.kill(child_pid, 0)  # it lives
            for attempt in range(100):  # a child that was forked just now may not have run yet
                try:
                    take(tmp_path)
                    break
                except SetupError:
                    assert attempt < 99
                    time.sleep(0.05)
        finally:
            os.kill(child_pid, signal.SIGKILL)


def test_a_child_that_leaves_does_not_give_it_up(tmp_path: Path) -> None:
    with held(tmp_path, "fork that leaves"), pytest.raises(SetupError):
        take(tmp_path)


def test_it_is_free_after_use_and_after_an_error(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(SetupError, match=f"process {os.getpid()} "):
        take(tmp_path)
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    take(tmp_path)


def test_one_lock_may_be_taken_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    for _ in range(2):
        with lock, pytest.raises(SetupError):
            take(tmp_path)


@pytest.mark.parametrize("stale", ["", "junk", "[]", json.dumps({"pid": 1, "host": "x" * 999})])
def test_a_stale_file_is_no_hindrance(stale: str, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(stale)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("unsigned", ["", "[]", "7", '{"pid": 3}'])
def test_a_holder_that_has_not_signed_yet_holds_it_too(unsigned: str, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text(unsigned)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SetupError, match=r"in use by another process\. Wait"):
            take(tmp_path)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with RunLock(tmp_path):
        for _ in range(3):
            with pytest.raises(SetupError):
                take(tmp_path)
    with pytest.raises(SetupError):
        take(tmp_path / "missing")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_place_that_can_not_be_written_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"missing/.lock: cannot be written: No such file"):
        take(tmp_path / "missing")
    (tmp_path / ".lock").mkdir()
    with pytest.raises(SetupError, match=r".lock: cannot be written: Is a directory"):
        take(tmp_path)


def test_a_full_disk_is_said_so_and_the_lock_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(SetupError, match=r".lock: cannot be written: No space left"):
            take(tmp_path)
    take(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL])
def test_a_file_system_without_locks_is_refused(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(SetupError, match=r"its file system cannot lock .* another file system"):
        take(tmp_path)
