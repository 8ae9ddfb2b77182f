"""`rlframe` as a process: what ends it, what it says then, and what becomes of its output.

Real processes. Most do the work of a few lines; those that train take some seconds each.
"""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlframe.cli.console import Enduring

WATCHED = """
import ctypes, os, signal, subprocess, sys, time
from rlframe.distributed.watching import watched
def work():
    {}
    sys.exit(0)
watched(work)
"""
RLFRAME = [sys.executable, "-m", "rlframe"]


@pytest.fixture(autouse=True, scope="module")
def _signals_are_not_ignored() -> Iterator[None]:
    """A background job of a shell, and nohup, would have the children of these tests ignore them."""
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def end_of(work: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """How a process ends whose watched child does this."""
    command = [sys.executable, "-c", WATCHED.format(work)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **settings)


# Only what has finished is a success


@pytest.mark.parametrize(
    "leaving",
    [
        "os._exit(0)",
        "ctypes.CDLL(None).exit(0)",
        "ctypes.CDLL(None)._exit(0)",
        "os.execv('/bin/true', ['true'])",
        "import threading; threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(9)",
    ],
)
def test_a_process_that_ends_with_0_before_its_work_is_done_has_failed(leaving: str) -> None:
    ended = end_of(leaving)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the process ended with exit code 0 before its work was")
    assert "rlframe resume RUN" in ended.stderr


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        ("pass", 0, ""),
        ("print('done')", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("os._exit(7)", 7, ""),
        ("import atexit; atexit.register(os._exit, 0)", 0, ""),  # the work is done by then
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "error: the process was killed by SIGKILL (out"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "error: the process was killed by SIGSEGV"),
        ("os.kill(os.getppid(), signal.SIGTERM); time.sleep(9)", 143, "stopped by SIGTERM"),
    ],
)  # fmt: skip
def test_any_other_end_is_passed_on(work: str, code: int, said: str) -> None:
    ended = end_of(work)
    assert ended.returncode == code
    assert ended.stderr.startswith(said)
    assert bool(ended.stderr) == bool(said)


def test_what_the_child_started_and_left_does_not_keep_the_end_back() -> None:
    begun = time.monotonic()
    assert end_of("os.fork() == 0 and (os.closerange(0, 3), time.sleep(30))").returncode == 0
    assert time.monotonic() - begun < 20


def test_where_a_daemon_ignores_its_children_their_end_is_known_all_the_same() -> None:
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)}
    assert end_of("sys.exit(3)", **ignored).returncode == 3


def test_a_launcher_watches_its_ranks_itself_and_a_debugger_follows_no_child() -> None:
    here = "print(os.getpid(), os.getppid())"
    for before, alone in (("", False), ("os.environ['RLFRAME_REPORTS'] = '/x'", True),
                          ("sys.settrace(lambda *_: None)", True)):  # fmt: skip
        script = f"import os, sys\n{before}\n{WATCHED.format(here)}"
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        )
        worker, parent = map(int, process.communicate()[0].split())
        assert process.returncode == 0
        assert (worker == process.pid) == alone
        assert (parent == process.pid) == (not alone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_each_signal_reaches_the_child_once(number: signal.Signals) -> None:
    work = f"""got = []
    signal.signal({number:d}, lambda *_: got.append(1))
    print('ready', flush=True)
    while not got: time.sleep(0.01)
    time.sleep(0.3)
    print(len(got), flush=True)"""
    for group in (False, True):  # by `kill PID`, and as a terminal sends it to its foreground group
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED.format(work)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (os.killpg if group else os.kill)(process.pid, number)
        assert process.communicate(timeout=20)[0] == "1\n"
        assert process.returncode == 0


def test_an_ignored_signal_is_not_passed_on() -> None:
    work = """signal.getsignal(signal.SIGHUP) is signal.SIG_IGN or sys.exit(5)
    print('ready', flush=True)
    time.sleep(0.5)"""
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED.format(work)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == 0


def test_a_watcher_that_is_killed_takes_the_child_along() -> None:
    work = "print(os.getpid(), flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED.format(work)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    assert process.stdout.read() == ""  # the child's end of the pipe is closed
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}/status").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}/status").exists()


def test_a_process_that_is_paused_and_continued_takes_its_child_along() -> None:
    work = """print(os.getpid(), flush=True)
    for number in range(40):
        time.sleep(0.05)"""
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED.format(work)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())

    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    process.send_signal(signal.SIGTSTP)
    end = time.monotonic() + 10
    while {state(process.pid), state(child)} != {"T"} and time.monotonic() < end:
        time.sleep(0.01)
    assert {state(process.pid), state(child)} == {"T"}
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=20) == 0
    process.stdout.close()


@pytest.mark.parametrize("code", [0, 3])
def test_a_thread_that_never_ends_keeps_neither_the_child_nor_its_success_back(code: int) -> None:
    script = (
        "import sys, threading, time\nfrom rlframe.cli import console\n"
        "def main():\n"
        "    threading.Thread(target=time.sleep, args=(100,)).start()\n"
        f"    sys.exit({code})\n"
        "console.main = main\nconsole.console()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == code
    assert "not waiting for threads that a plugin has left running" in ended.stderr


# Output that nobody takes


def test_what_cannot_be_written_is_dropped_and_noted() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        raw = Enduring(full.fileno())
        assert raw.write(b"some text") == 9
        assert raw.write(b"more") == 4
        assert raw.lost is not None
        assert raw.lost.errno == errno.ENOSPC


def test_a_reader_that_takes_its_time_gets_everything() -> None:
    theirs, ours = os.pipe()
    os.set_blocking(ours, False)  # as some terminals hand their descriptors on
    slow = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; time.sleep(0.5); print(len(sys.stdin.read()))"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    raw = Enduring(ours)
    assert raw.write(b"x" * 1_000_000) == 1_000_000
    assert raw.lost is None
    os.close(ours)
    assert slow.communicate(timeout=20)[0] == "1000000\n"


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell in which `$R` is rlframe."""
    given = {**os.environ, "R": f"{sys.executable} -m rlframe"}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=given, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$R plugins list | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("$R plugins list | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}", 0, ""),
        ("$R plugins list >&-", 0, ""),
        ("$R plugins list >&- 2>&-", 0, ""),
        ("$R validate nothing.yaml 2>/dev/full", 3, ""),
        ("$R validate nothing.yaml >&- 2>&- <&-", 3, ""),
        ("$R plugins list >/dev/full", 1, "stdout could not be written, and is not complete: No space"),
        ("PYTHONIOENCODING=ascii $R validate näh.yaml", 3, "error: n\\xe4h.yaml: there is no such"),
        ("PYTHONIOENCODING=ascii $R plugins list >/dev/null", 0, ""),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 $R plugins list > /dev/null", 0, ""),
        ("TERM=weird COLUMNS=x LINES=-1 $R plugins list > /dev/null", 0, ""),
    ],
)  # fmt: skip
def test_a_short_command_ends_quietly_where_nobody_reads(
    tmp_path: Path, line: str, code: int, said: str
) -> None:
    ended = shell(line, tmp_path)
    assert (ended.returncode, ended.stderr.startswith(said)) == (code, True), ended.stderr
    assert bool(ended.stderr) == bool(said), ended.stderr


def test_a_file_that_a_run_opens_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    script = tmp_path / "say.py"
    script.write_text(
        "import os, sys\nfrom rlframe.cli import console\n"
        "console.main = lambda: (open('file', 'w').close(), os.write(1, b'out'), os.write(2, b'err'),\n"
        "                        print('text'), sys.exit(0))\n"
        "console.console()\n"
    )
    ended = shell(f"{sys.executable} say.py >&- 2>&- <&-", tmp_path)
    assert ended.returncode == 0
    assert (tmp_path / "file").read_text() == ""


# Runs


def rows(run: Path) -> list[Any]:
    """The metrics so far; of a run that goes on, the last line may be torn."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]


def status(run: Path) -> str:
    found: str = json.loads((run / "manifest.json").read_text())["status"]
    return found


TALKS = """\
import os, sys
from rlframe.api import PluginConfig, RewardProvider


class Talks(RewardProvider[PluginConfig]):
    def score(self, batch):
        print("täglich \\ud800 \\x1b[31m", "x" * 100_000)
        sys.stderr.write("also here\\n")
        if os.environ.get("LEAVE"):
            os._exit(0)
        return [float(len(text)) for text in batch.response_texts]
"""


@pytest.fixture
def talking(tiny_recipe: Any, tmp_path: Path) -> Path:
    """A recipe whose reward prints a lot, and ends the process if $LEAVE is set."""
    (tmp_path / "talks.py").write_text(TALKS)
    recipe: Path = tiny_recipe(rewards={"talks": {"type": "./talks.py:Talks"}})
    return recipe


@pytest.mark.parametrize(
    "line",
    [
        "PYTHONIOENCODING=ascii $R {} >/dev/full 2>&1",
        "$R {} >&- 2>&- <&-",
    ],
)
def test_a_run_goes_on_where_its_output_goes_nowhere(
    talking: Path, tmp_path: Path, line: str
) -> None:
    words = f"train {talking.name} --output run --allow-local-code"
    ended = shell(line.format(words), tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert status(tmp_path / "run") == "finished"
    assert len([row for row in rows(tmp_path / "run") if "episode" in row]) == 2
    assert (tmp_path / "run" / "samples" / "after.jsonl").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_a_plugin_ends_with_0_has_failed(
    talking: Path, tmp_path: Path, processes: int
) -> None:
    words = f"train {talking.name} --output run --allow-local-code --processes {processes}"
    ended = shell(f"LEAVE=1 $R {words} >/dev/null", tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "ended with exit code 0 before its work was done" in ended.stderr
    assert ("error: rank" in ended.stderr) == (processes == 2)
    assert status(tmp_path / "run") != "finished"
    if processes == 1:
        resumed = shell("$R resume run --allow-local-code >/dev/null 2>&1", tmp_path)
        assert resumed.returncode == 0
        assert status(tmp_path / "run") == "finished"


IN_A_TERMINAL = """
import os, sys
os.setsid()
terminal = os.open(sys.argv[1], os.O_RDWR)  # a session's leader that opens one has it
for descriptor in (0, 1, 2):
    os.dup2(terminal, descriptor)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.parametrize(
    ("before", "code", "ending"),
    [([], 130, "interrupted"), (["nohup"], 0, "finished")],
    ids=["saves a checkpoint", "and under nohup the run goes on"],
)
def test_a_terminal_that_disappears(
    tiny_recipe: Any, tmp_path: Path, before: list[str], code: int, ending: str
) -> None:
    run = tmp_path / "run"
    updates = 60 if code else 20
    recipe = tiny_recipe(ppo={"updates": updates, "learning_rate": 1e-3, "decay": "constant"})
    ours, theirs = pty.openpty()
    words = ["-m", "rlframe", "train", str(recipe), "--output", str(run)]
    command = [*before, sys.executable, "-c", IN_A_TERMINAL, os.ttyname(theirs), *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL
    )
    while not (run / "metrics.jsonl").exists() or len(rows(run)) < 2:
        assert process.poll() is None
        os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)  # SIGHUP for who has this terminal, and EIO for whoever writes to it
    assert process.wait(timeout=120) == code
    assert status(run) == ending
    if code:
        saved = [int(path.name) for path in (run / "checkpoints" / "ppo").glob("[0-9]*")]
        assert saved == [len(rows(run))]


def test_sighup_saves_a_checkpoint_of_two_processes(tiny_recipe: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(ppo={"updates": 500, "learning_rate": 1e-3})
    words = ["train", str(recipe), "--output", str(run), "--processes", "2"]
    process = subprocess.Popen(
        [*RLFRAME, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not (run / "metrics.jsonl").exists() or not rows(run):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert f"rlframe resume {run}" in said
    assert status(run) == "interrupted"
    assert (run / "checkpoints" / "ppo" / f"{len(rows(run)):06d}").is_dir()
