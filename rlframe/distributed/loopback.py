"""Processes of one machine meet where nobody else can reach them: on its loopback interface."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import TCPStore

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def local_meeting(timeout: timedelta) -> dict[str, Any]:
    """Keep a run that is on this machine alone from listening on its network.

    torch's store and gloo would listen on all interfaces, and whoever can reach them can read and write
    what the ranks exchange. A run is taken for local if it is one process, or if MASTER_ADDR says so;
    torchrun and `accelerate launch` bring a store of their own, which is theirs to place.

    Args:
      timeout: of the store.

    Returns:
      What `init_process_group` is to be given for it; nothing where the environment decides.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and os.environ.get("MASTER_ADDR") not in _LOOPBACK:
        return {}
    for library in ("GLOO", "NCCL"):
        os.environ[f"{library}_SOCKET_IFNAME"] = _interface()
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if world == 1 or agents or not {"RANK", "MASTER_PORT"} <= os.environ.keys():
        return {}
    rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
    store = TCPStore(
        "127.0.0.1",
        port,
        world,
        rank == 0,
        timeout,
        wait_for_workers=False,
        master_listen_fd=_listening(port) if rank == 0 else None,
    )
    return {"store": store, "rank": rank, "world_size": world}


def _listening(port: int) -> int:
    """A socket for the store, which would open one on all interfaces."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a launcher holds the port
        bound.bind(("127.0.0.1", port))
        bound.listen()
        return bound.detach()


def _interface() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), "lo")
