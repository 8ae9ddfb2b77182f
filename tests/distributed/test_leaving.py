"""A process that has exchanged tensors ends as it should, however late the threads of gloo are."""

import os
import signal
import socket
import subprocess
import sys

import pytest

# Rank 1 ends its run while a thread of gloo holds the last reference to a tensor that Python made:
# rank 0 takes part in the exchange a moment later. `usleep` is the last that runs before the
# interpreter is taken down, and keeps the interpreter's lock, as a collection of garbage would.
LATE = """
import atexit, ctypes, os, sys, time
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
    leave()
"""


@pytest.fixture
def ended():
    """The exit code of rank 1 of two, and what it wrote."""

    def run(*words):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", LATE, *words],
                env={**os.environ, **where, "RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
        return ranks[1].returncode, said[1]

    return run


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="since 3.14 such a thread just stops")
def test_without_leaving_the_process_is_aborted(ended):
    """What torch does by itself. Should it pass one day, `leave` has lost its reason."""
    code, said = ended()
    assert code == -signal.SIGABRT
    assert "terminate called without an active exception" in said


@pytest.mark.parametrize(
    "kept", [[], ["kept"]], ids=["nobody refers to the group", "somebody does"]
)
def test_a_process_that_leaves_ends_well(ended, kept):
    assert ended("leave", *kept)[0] == 0
