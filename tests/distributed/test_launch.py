"""The launcher's promises, kept by real processes: small scripts that stand in for `rlframe train`."""

import json
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from rlframe.distributed.child import (
    REPORTS,
    Report,
    read_report,
    refuse_missing_gpus,
    refuse_odd_environment,
    report_path,
    tell,
)
from rlframe.distributed.launch import GRACE, SETTLE, _reserved_port
from rlframe.errors import SetupError

LAUNCH = """\
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
from rlframe.distributed.launch import launch
sys.exit(launch(json.loads(sys.argv[1]), **json.loads(sys.argv[2])).exit_code)
"""
PRELUDE = """\
import atexit, json, os, signal, socket, subprocess, sys, time
from pathlib import Path
from rlframe.distributed.child import finished
atexit.register(finished, Path(os.environ["RLFRAME_REPORTS"]))  # with any exit code: 0 alone is asked
rank, here = int(os.environ["RANK"]), Path(os.environ["HERE"])
def note(name, text=""):
    (here / f"{name}-{rank}.new").write_text(text)
    (here / f"{name}-{rank}.new").replace(here / f"{name}-{rank}")
def fail(error, code=1):
    from rlframe.distributed.child import take_reports, tell
    tell(f"error: {error}", code, error, reports=take_reports())
    sys.exit(code)
"""


class Launched:
    """A launcher in a process of its own, over ranks that run a script."""

    def __init__(self, here, script, *, environment=None, stdout=subprocess.PIPE, **settings):
        self.here = here
        command = [sys.executable, "-c", PRELUDE + script]
        settings = {"processes": 2, **settings}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, json.dumps(command), json.dumps(settings)],
            env={**os.environ, "HERE": str(here), **(environment or {})},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def send(self, number):
        self.process.send_signal(number)

    def wait_for(self, *names):
        """Until the ranks have left these notes."""
        assert happens(lambda: all((self.here / name).exists() for name in names))

    def note(self, name):
        return (self.here / name).read_text()

    def end(self, within=20):
        """Exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=within)
        self.seconds = time.monotonic() - self.started
        return self.process.returncode, out, err

    def left(self):
        """Processes of this launch that are alive."""
        return [process for process in psutil.process_iter() if self._is_mine(process)]

    def _is_mine(self, process):
        try:
            return process.environ().get("HERE") == str(self.here)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False


def happens(condition, *, seconds=10):
    """Whether a condition comes true within so many seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts launchers; whatever they leave behind fails the test."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", REPORTS):
        monkeypatch.delenv(name, raising=False)
    launchers = []

    def start(script, **settings):
        here = tmp_path / str(len(launchers))
        here.mkdir()
        launchers.append(Launched(here, script, **settings))
        return launchers[-1]

    yield start
    for launcher in launchers:
        left = launcher.left()
        for process in left:
            process.kill()
        launcher.process.communicate()
        assert not left


# What a rank finds, and where its words go


@pytest.mark.parametrize(
    ("given", "threads", "expected"),
    [
        ({}, None, str(max(1, len(os.sched_getaffinity(0)) // 3))),
        ({"OMP_NUM_THREADS": "7"}, None, "7"),
        ({"OMP_NUM_THREADS": "7"}, 2, "2"),
    ],
    ids=["shared out", "as the user says", "as the recipe says"],
)
def test_ranks_find_what_torch_distributed_reads(started, monkeypatch, given, threads, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launched = started(
        'note("environment", json.dumps(dict(os.environ)))',
        processes=3,
        threads=threads,
        environment=given,
    )
    assert launched.end() == (0, "", "")
    found = [json.loads(launched.note(f"environment-{rank}")) for rank in range(3)]
    for rank, environment in enumerate(found):
        assert environment["RANK"] == environment["LOCAL_RANK"] == str(rank)
        assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "3"
        assert environment["MASTER_ADDR"] == "127.0.0.1"
        assert environment["OMP_NUM_THREADS"] == expected
    assert len({environment["MASTER_PORT"] for environment in found}) == 1


def test_rank_0_speaks_as_it_is_and_the_others_on_stderr_behind_their_number(started):
    script = """
print(f"out of {rank}", flush=True)
if rank:
    time.sleep(0.3 * rank)
    sys.stderr.write(f"one of {rank}\\n10%\\r99%\\rdone\\nunfinished")
else:
    sys.stderr.write("zero\\n")
"""
    code, out, err = started(script, processes=3).end()
    assert (code, out) == (0, "out of 0\n")
    assert err.splitlines() == [
        "zero",
        *("[rank 1] one of 1", "[rank 1] done", "[rank 1] unfinished"),
        *("[rank 2] one of 2", "[rank 2] done", "[rank 2] unfinished"),
    ]


def test_a_terminal_stays_one_for_rank_0_and_gets_its_cursor_back(started):
    ours, theirs = pty.openpty()
    launched = started('note("tty", str(sys.stdout.isatty()))', stdout=theirs)
    assert launched.end()[0] == 0
    os.close(theirs)
    assert (launched.note("tty-0"), launched.note("tty-1")) == ("True", "False")
    assert os.read(ours, 100) == b"\x1b[?25h"
    os.close(ours)


# How a failure ends


@pytest.mark.parametrize(
    ("ending", "code", "message"),
    [
        ("sys.exit(7)", 7, "error: rank 1 ended with exit code 7"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "error: rank 1 was killed by SIGKILL (out of",
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "error: rank 1 was killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "error: rank 1 was killed by SIGINT"),
        ("fail(ValueError('no'), 4)", 4, "rank 1: error: no"),
        ("os._exit(0)", 1, "error: rank 1 ended with exit code 0 before its work was done."),
        ("os.execv('/bin/true', ['true'])", 1, "error: rank 1 ended with exit code 0 before"),
    ],
)
def test_the_exit_code_is_that_of_the_rank_that_failed(started, ending, code, message):
    script = f"""
signal.signal(signal.SIGINT, signal.SIG_DFL)
if rank == 1:
    {ending}
time.sleep(0.3)
"""
    found, _, err = started(script).end()
    assert found == code
    assert err.startswith(message)
    assert len(err.splitlines()) == 1


def test_who_ignores_sigterm_is_killed_with_all_that_it_has_started(started):
    script = """
if rank == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "60"])  # inherits what is ignored
    note("deaf")
    time.sleep(60)
while not (here / "deaf-0").exists():
    time.sleep(0.01)
sys.exit(3)
"""
    launched = started(script)
    launched.wait_for("deaf-0")
    since = time.monotonic()
    assert launched.end()[0] == 3
    assert SETTLE + GRACE - 0.2 < time.monotonic() - since < 5
    assert not launched.left()


@pytest.mark.parametrize("seed", range(3))
def test_sigkill_of_a_rank_at_any_moment_ends_everything_within_5_s(started, seed):
    script = """
subprocess.Popen(["sleep", "60"])
note("pid", str(os.getpid()))
time.sleep(60)
"""
    draw = random.Random(seed)
    victim = draw.randrange(3)
    launched = started(script, processes=3)
    launched.wait_for(f"pid-{victim}")
    time.sleep(draw.uniform(0, 0.3))
    os.kill(int(launched.note(f"pid-{victim}")), signal.SIGKILL)
    killed = time.monotonic()
    code, _, err = launched.end()
    assert time.monotonic() - killed < 5
    assert code == 137
    assert err.startswith(f"error: rank {victim} was killed by SIGKILL")
    assert not launched.left()


def test_a_rank_that_has_told_its_error_and_does_not_end_is_ended(started):
    script = """
if rank == 1:
    import atexit
    atexit.register(time.sleep, 60)
    fail(ValueError("the reward is not finite"))
time.sleep(60)
"""
    code, _, err = started(script).end()
    assert (code, err) == (1, "rank 1: error: the reward is not finite\n")


def test_a_program_that_is_not_there_leaves_nothing_behind(tmp_path):
    script = 'from rlframe.distributed.launch import launch\nlaunch(["./nothing"], processes=2)'
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True)
    assert b"FileNotFoundError" in done.stderr


# Whose error is reported


LOST_PEER = "RuntimeError('[gloo/transport/tcp/pair.cc:553] Connection closed by peer')"


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "error: rank 2 was killed by SIGKILL"),
        ("fail(ValueError('the disk is full'))", "rank 2: error: the disk is full"),
    ],
)
def test_who_only_lost_its_peer_is_not_blamed_even_if_it_told_so_first(started, cause, message):
    script = f"""
from rlframe.distributed import child
note("ready")
def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
wait_for(here / "ready-0"), wait_for(here / "ready-1"), wait_for(here / "ready-2")
if rank == 1:
    try:
        fail({LOST_PEER})
    finally:
        time.sleep(0.5)
        sys.stderr.write("frame #0: c10::Error\\n")
wait_for(Path(os.environ["RLFRAME_REPORTS"]) / "rank-1.json")
if rank == 0:
    os.abort()
sys.stderr.write("my own words\\n")
{cause}
"""
    _, _, err = started(script, processes=3).end()
    assert err.startswith(message)
    assert "gloo" not in err
    assert "frame #0" not in err
    assert "[rank 2] my own words" in err


def test_without_another_cause_a_lost_peer_is_told(started):
    code, _, err = started(f"if rank:\n    fail({LOST_PEER})\ntime.sleep(60)").end()
    assert code == 1
    assert err.startswith("rank 1: error: [gloo/transport")


def test_what_all_ranks_say_is_told_once_and_without_a_number(started):
    script = 'time.sleep(0.2 * rank)\nfail(ValueError("ppo.updates: too many"), 3)'
    assert started(script, processes=3).end() == (3, "", "error: ppo.updates: too many\n")


def test_errors_that_differ_are_told_in_the_order_of_time(started):
    script = 'time.sleep(0.3 * (2 - rank))\nfail(ValueError(f"of {rank}"), 3 + rank)'
    code, _, err = started(script, processes=3).end()
    assert code == 5
    assert err.splitlines() == [f"rank {rank}: error: of {rank}" for rank in (2, 1, 0)]


def test_an_error_of_torch_itself_is_recognised(started):
    """Two ranks of gloo, one of which dies in front of a collective; the port is used by TCPStore."""
    script = """
import torch, torch.distributed as distributed
distributed.init_process_group("gloo")
total = torch.tensor(rank + 1.0)
distributed.all_reduce(total)
note("total", str(total.item()))
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    distributed.all_reduce(total)
except RuntimeError as error:
    fail(error)
"""
    launched = started(script)
    code, _, err = launched.end(within=60)
    assert (code, launched.note("total-0")) == (137, "3.0")
    assert err.splitlines()[-1].startswith("error: rank 1 was killed by SIGKILL")


# Signals


SAVES = """
def stop(number, _):
    note("count", str(int((here / f"count-{rank}").read_text()) + 1))
    time.sleep(0.4 + 0.4 * rank)
    note("saved")
    sys.exit(128 + number)
note("count", "0")
signal.signal(signal.SIGINT, stop), signal.signal(signal.SIGTERM, stop)
note("ready")
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "stopped by SIGTERM\n")],
)
def test_a_signal_is_passed_on_once_and_the_ranks_may_take_their_time(
    started, number, code, message
):
    launched = started(SAVES)
    launched.wait_for("ready-0", "ready-1")
    launched.send(number)
    time.sleep(0.3)
    launched.send(signal.SIGTERM)
    assert launched.end() == (code, "", message)
    assert {(here.name, here.read_text()) for here in launched.here.glob("count-*")} == {
        ("count-0", "1"),
        ("count-1", "1"),
    }
    assert launched.here.joinpath("saved-0").exists()
    assert launched.here.joinpath("saved-1").exists()


def test_ranks_that_end_well_after_a_signal_make_a_run_that_ended_well(started):
    launched = started(SAVES.replace("128 + number", "0"))
    launched.wait_for("ready-0", "ready-1")
    launched.send(signal.SIGTERM)
    assert launched.end() == (0, "", "")


def test_a_second_sigint_kills(started):
    launched = started(SAVES.replace("0.4 + 0.4 * rank", "60"))
    launched.wait_for("ready-0", "ready-1")
    launched.send(signal.SIGINT)
    launched.wait_for("count-0", "count-1")
    assert happens(lambda: launched.note("count-0") == launched.note("count-1") == "1")
    since = time.monotonic()
    launched.send(signal.SIGINT)
    assert launched.end() == (130, "", "interrupted\n")
    assert time.monotonic() - since < 2


def test_who_waits_for_a_rank_that_a_signal_has_ended_is_ended_too(started):
    """As when the signal comes before the rank could install its handler."""
    script = """
if rank == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
note("ready")
time.sleep(60)
"""
    launched = started(script)
    launched.wait_for("ready-0", "ready-1")
    launched.send(signal.SIGTERM)
    assert launched.end()[::2] == (143, "stopped by SIGTERM\n")


def test_a_launcher_that_is_killed_takes_its_ranks_along(started):
    launched = started(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('ready')\ntime.sleep(60)"
    )
    launched.wait_for("ready-0", "ready-1")
    launched.send(signal.SIGKILL)
    assert happens(lambda: not launched.left(), seconds=2)


# The port


def test_a_reserved_port_is_for_rank_0_alone():
    with _reserved_port() as port:
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        for family in (socket.AF_INET, socket.AF_INET6):
            with socket.socket(family) as store:
                store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                store.bind(("", port))
                store.listen()


def test_two_launches_at_the_same_time_do_not_meet(started):
    script = """
port = int(os.environ["MASTER_PORT"])
if rank == 0:
    listening = socket.create_server(("", port))
    note("listens")
    assert listening.accept()[0].recv(100).decode() == os.environ["HERE"]
else:
    while not (here / "listens-0").exists():
        time.sleep(0.01)
    socket.create_connection((os.environ["MASTER_ADDR"], port)).sendall(os.environ["HERE"].encode())
"""
    launched = [started(script) for _ in range(2)]
    assert [each.end() for each in launched] == [(0, "", "")] * 2


# What a rank does


def test_a_report_is_read_as_it_was_written_and_takes_the_place_of_stderr(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("RANK", "3")
    before = time.monotonic()
    tell("error: nö", 4, ValueError("nö"), reports=tmp_path)
    report = read_report(report_path(tmp_path, 3))
    assert report == Report(4, "error: nö", report.time, lost_peer=False, remedy=None)
    assert before <= report.time <= time.monotonic()
    assert read_report(report_path(tmp_path, 0)) is None
    assert capsys.readouterr() == ("", "")


LACKS_MEMORY = """
import os, signal, sys, time
from rlframe.distributed.child import take_reports, tell
from rlframe.errors import OutOfMemoryError
reports, rank = take_reports(), int(os.environ["RANK"])
if sys.argv[1:] == ["asked"]:
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    (reports / f"ready-{rank}").touch()
    while rank == 0 and not (reports / "ready-1").exists():
        time.sleep(0.01)
    if rank == 0:
        os.kill(os.getppid(), signal.SIGTERM)
    while not asked:
        time.sleep(0.01)
time.sleep(rank / 2)
tell("error: full", 1, OutOfMemoryError("full", remedy=f"size={rank}"), reports=reports)
sys.exit(1)
"""


@pytest.mark.parametrize(("words", "remedy"), [([], "size=0"), (["asked"], None)])
def test_a_remedy_is_that_of_the_rank_that_failed_first_unless_the_run_was_to_stop(words, remedy):
    script = (
        "import json, sys; from rlframe.distributed.launch import launch; "
        "print(launch(json.loads(sys.argv[1]), processes=2))"
    )
    rank = json.dumps([sys.executable, "-c", LACKS_MEMORY, *words])
    found = subprocess.run([sys.executable, "-c", script, rank], capture_output=True, text=True)
    assert found.stdout == f"Ended(exit_code=1, remedy={remedy!r})\n", found.stderr
    assert found.stderr == "error: full\n"


def test_a_report_that_can_not_be_written_is_told_all_the_same(tmp_path, capsys):
    tell("error: no", 4, ValueError("no"), reports=tmp_path / "gone")
    assert capsys.readouterr().err.startswith("error: no\n")


@pytest.mark.parametrize(("size", "message"), [("2", "rank 1: error: no\n"), ("1", "error: no\n")])
def test_without_a_launcher_a_rank_says_which_it_is(monkeypatch, capsys, size, message):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", size)
    tell("error: no", 4, ValueError("no"), reports=None)
    assert capsys.readouterr() == ("", message)


def test_an_error_that_came_of_a_lost_peer_is_one(tmp_path):
    from torch.distributed import DistNetworkError

    lost = DistNetworkError("Failed to recv, got 0 bytes")
    wrapped = SetupError("the sum over ranks failed")
    wrapped.__cause__ = lost
    for error, expected in ((lost, True), (wrapped, True), (SetupError("no disk"), False)):
        tell("", 1, error, reports=tmp_path)
        assert read_report(report_path(tmp_path, 0)).lost_peer is expected


@pytest.mark.parametrize(
    ("device", "processes", "gpus", "refused"),
    [("auto", 3, 2, True), ("cuda", 2, 1, True), ("auto", 2, 2, False), ("auto", 3, 0, False),
     ("cpu", 3, 2, False), ("auto", 1, 0, False)],
)  # fmt: skip
def test_a_process_without_a_gpu_of_its_own_is_refused(
    monkeypatch, device, processes, gpus, refused
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    if refused:
        with pytest.raises(SetupError, match=f"sees {gpus} GPU.*--processes {gpus}"):
            refuse_missing_gpus(device)
    else:
        refuse_missing_gpus(device)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, None),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}, None),
        ({"OMP_NUM_THREADS": "4,2"}, None),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
        ({"RANK": "1"}, "WORLD_SIZE is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"LOCAL_WORLD_SIZE": "1.5"}, "LOCAL_WORLD_SIZE is '1.5'"),
        ({"OMP_NUM_THREADS": "abc"}, "OMP_NUM_THREADS is 'abc'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
)
def test_an_environment_that_cannot_be_is_named(monkeypatch, given, message):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if message is None:
        refuse_odd_environment()
    else:
        with pytest.raises(SetupError, match=message):
            refuse_odd_environment()
