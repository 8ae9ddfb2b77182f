"""A process that has exchanged tensors ends as it should, however late the threads of gloo are."""

import signal
import subprocess
import sys

import pytest

from rlframe.distributed.launch import launch
from tests.cli.conftest import TINY

# Rank 1 ends its run while a thread of gloo holds the last reference to a tensor that Python made:
# rank 0 takes part in the exchange a moment later. `usleep` is the last that runs before the
# interpreter is taken down, and keeps the interpreter's lock, as a collection of garbage would.
LATE = """
import atexit, ctypes, os, sys, time
from rlframe.distributed.child import finished, take_reports
finished(take_reports())
rank = int(os.environ["RANK"])
if rank == 1:
    atexit.register(ctypes.PyDLL(None).usleep, 400_000)
import torch
import torch.distributed as dist
from rlframe.distributed.runtime import leave
dist.init_process_group("gloo")
kept = dist.group.WORLD if "kept" in sys.argv else None
dist.all_reduce(torch.ones(1))
if rank == 0:
    time.sleep(0.1)
work = dist.all_reduce(torch.ones(1000), async_op=True)
if rank == 0:
    work.wait()
    time.sleep(1.5)
del work
if "leave" in sys.argv:
    atexit.register(leave)
"""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="since 3.14 such a thread just stops")
def test_without_leaving_the_process_is_aborted(capsys):
    """What torch does by itself. Should it pass one day, `leave` has lost its reason."""
    ended = launch([sys.executable, "-c", LATE], processes=2)
    assert ended.exit_code == 128 + signal.SIGABRT
    assert "terminate called without an active exception" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [[], ["kept"]], ids=["nobody keeps the group", "somebody does"])
def test_a_process_that_leaves_ends_well(kept):
    assert launch([sys.executable, "-c", LATE, "leave", *kept], processes=2).exit_code == 0


def test_deepspeed_runs_again_in_a_process_that_has_finished_a_run(tmp_path):
    """Its own record of the group outlives the group, so a run must not end it."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    code = "import sys; from rlframe.cli.main import main\nfor run in 'ab':\n"
    code += (
        " sys.argv[1:] = ['train', 'tiny.yaml', 'runtime.strategy=deepspeed', '--output', run]\n"
    )
    code += " try: main()\n except SystemExit as end: assert not end.code"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Everything is in") == 2
