"""A run on one machine listens on no interface that others can reach."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RANK = """
import json, sys
from pathlib import Path

import psutil
import torch

from rlframe.distributed.runtime import Runtime
from rlframe.distributed.strategy import Strategy

runtime = Runtime(Strategy(name=sys.argv[2]), device="cpu", threads=1)
assert runtime.sum(torch.tensor(1.0)) == runtime.world_size
assert runtime.gather(runtime.rank) == [*range(runtime.world_size)]
found = [
    connection.laddr.ip
    for connection in psutil.Process().net_connections()
    if connection.status == psutil.CONN_LISTEN
]
(Path(sys.argv[1]) / str(runtime.rank)).write_text(json.dumps(found))
runtime.barrier()
"""
LAUNCH = """
import json, sys
from rlframe.distributed.launch import launch
sys.exit(launch(json.loads(sys.argv[1]), processes=2, threads=1).exit_code)
"""


@pytest.mark.parametrize(("processes", "strategy"), [(2, "ddp"), (1, "fsdp")])
def test_nothing_listens_beyond_this_machine(processes: int, strategy: str, tmp_path: Path) -> None:
    rank = [sys.executable, "-c", RANK, str(tmp_path), strategy]
    command = rank if processes == 1 else [sys.executable, "-c", LAUNCH, json.dumps(rank)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ranks = [json.loads((tmp_path / str(n)).read_text()) for n in range(processes)]
    heard = [address for addresses in ranks for address in addresses]
    assert heard or processes == 1, done.stderr
    assert {*heard} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
