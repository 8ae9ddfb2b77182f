"""Notes what a process has put on the disk for good: for `tests/benchmarks/chaos.py`, on PYTHONPATH.

Python imports a module of this name when it starts. Every `os.fsync` of a file keeps a copy of its
bytes, every `os.fsync` of a directory a copy of its names, both by inode. `power.cut` makes a directory
of them that holds what a machine has after its power was cut at the worst moment: files as they were
when they were synced last, names as they were when their directory was.
"""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

_ROOM = os.environ.get("CHAOS_ROOM", "")
_JOURNAL = Path(os.environ.get("CHAOS_JOURNAL", ""))
_LAST = int(os.environ.get("CHAOS_FSYNCS", "0"))
_SYNC = os.fsync
_seen = 0
_held: dict[int, int] = {}


def _fsync(descriptor: int) -> None:
    global _seen
    _SYNC(descriptor)
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    if not path.startswith(_ROOM):
        return
    note(Path(path), os.fstat(descriptor))
    _seen += 1
    if _seen == _LAST:
        os.kill(os.getpid(), signal.SIGKILL)


def note(path: Path, found: os.stat_result) -> None:
    """Keep what is on the disk now of a file or directory."""
    kept = _JOURNAL / str(found.st_ino)
    if stat.S_ISDIR(found.st_mode):
        if found.st_ino not in _held:  # an inode that is open is not given to another file
            _held[found.st_ino] = os.open(path, os.O_RDONLY)
        names = {entry.name: [entry.stat().st_ino, entry.is_dir()] for entry in os.scandir(path)}
        content = json.dumps(names).encode()
    else:
        content = path.read_bytes()
        held = kept.with_suffix(".held")
        if not held.exists():  # nor is one that has a name
            try:
                os.link(path, held)
            except OSError:  # another file system, whose inodes are not used twice if it is a tmpfs
                held.touch()
    new = kept.with_suffix(".new")
    new.write_bytes(content)
    new.replace(kept)


if _ROOM:
    os.fsync = _fsync
