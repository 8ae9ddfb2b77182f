"""Files that survive a kill, a full disk and a loss of power: whole and old, or whole and new.

What `write` does is in the cache of the kernel alone, and a rename may reach the disk before the bytes
of the file. So a file is flushed before it gets its name, and its directory after that.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT}


def replace_text(path: Path, text: str) -> None:
    """Replace a file: whoever reads it, or pulls the plug, finds the old text or the new.

    Raises:
      OSError: it cannot be written; the old text is still there, and nothing of the new.
    """
    temporary = path.with_name(f"{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a file; `sync` it when they have to be on the disk.

    Raises:
      OSError: they cannot be written. The last of those that are there may be torn.
    """
    with path.open("a", encoding="utf-8", newline="") as file:
        file.writelines(f"{line}\n" for line in lines)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON that can be read and written as UTF-8; a number that is not finite becomes null."""
    plain = _finite(value)
    text = json.dumps(plain, ensure_ascii=False, indent=indent)
    # A lone surrogate, as in an argument that is not UTF-8, can stand in JSON as an escape alone.
    return text if _is_unicode(text) else json.dumps(plain, indent=indent)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make a directory, and those around it, whose names are on the disk."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync(directory.parent)


def files_below(directory: Path) -> Iterator[Path]:
    """All files of a directory and those within it."""
    for inner, _, names in os.walk(directory):
        yield from (Path(inner) / name for name in names)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether that is what lies behind an error. safetensors and torch say it in words alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(os.strerror(number) in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def size_of(count: float) -> str:
    """A number of bytes for a reader: "12 MiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
