"""A loss of power, simulated: files are cut back to what was synced, and names to those that were.

`watched` gives the environment of a process whose syncs are noted (`powerloss/sitecustomize.py`, which
says what is kept); after it was killed, `cut` makes its directory what a machine would find.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

_open: list[int] = []  # directories that were there before, held while the process runs
_HOOK = Path(__file__).parent / "powerloss" / "sitecustomize.py"


def watched(room: Path, journal: Path, *, syncs: int = 0) -> dict[str, str]:
    """What a process needs in its environment, after noting that what is in the room now is safe.

    Args:
      room: the directory around the run.
      journal: an empty directory outside of it, on the same file system if there are to be hard links.
      syncs: after so many the process that writes kills itself; 0 for never.
    """
    found = {
        "CHAOS_ROOM": str(room),
        "CHAOS_JOURNAL": str(journal),
        "CHAOS_FSYNCS": str(syncs),
        "PYTHONPATH": os.pathsep.join([str(_HOOK.parent), os.environ.get("PYTHONPATH", "")]),
    }
    shutil.rmtree(journal, ignore_errors=True)
    journal.mkdir()
    while _open:
        os.close(_open.pop())
    hook = _hook(journal)
    for path in (room, *room.rglob("*")):
        hook.note(path, path.stat())
    _open.extend(hook._held.values())
    return found


def cut(room: Path, journal: Path, draw: random.Random) -> None:
    """Leave in the room what was synced.

    Some file systems give a file its new length before its bytes: then zeros stand behind what was
    synced of a file that has grown since.
    """
    sizes = {path.stat().st_ino: path.stat().st_size for path in room.rglob("*") if path.is_file()}
    rebuilt = room.with_name(f"{room.name}-rebuilt")
    rebuilt.mkdir()
    _build(room.stat().st_ino, rebuilt, journal, sizes, draw)
    for path in room.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in rebuilt.iterdir():
        shutil.move(path, room / path.name)
    rebuilt.rmdir()


def _build(
    inode: int, target: Path, journal: Path, sizes: dict[int, int], draw: random.Random
) -> None:
    kept = journal / str(inode)
    names = json.loads(kept.read_bytes()) if kept.exists() else {}
    for name, (inner, is_directory) in names.items():
        path = target / name
        if is_directory:
            path.mkdir()
            _build(inner, path, journal, sizes, draw)
            continue
        synced = journal / str(inner)
        content = synced.read_bytes() if synced.exists() else b""
        grown = max(0, sizes.get(inner, 0) - len(content))
        path.write_bytes(content + bytes(grown if draw.random() < 0.5 else 0))


def _hook(journal: Path) -> Any:
    spec = importlib.util.spec_from_file_location("powerloss", _HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._JOURNAL = journal
    return module
