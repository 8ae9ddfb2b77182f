"""Directories that are whole or not there, and whose every byte can be compared with what was written.

root/000020/                what `fill` wrote, and checksums.json
root/.writing-000030/       not finished
root/.replaced-000020/      the one before, while 000020 is being replaced
root/.removing-000010/      on its way out

A directory gets its name only when everything in it is on the disk. So a process that is killed, or a
machine that loses power, leaves hidden directories behind at most. Checkpoints and the results of
stages are kept in this way.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlframe.errors import RunError
from rlframe.runs.durable import disk_is_full, files_below, json_text, make_directory, size_of, sync

FORMAT = 2
"""Of checksums.json. 1 did not say which run a directory belongs to."""

_CHECKSUMS = "checksums.json"


class SealedDirectories:
    """Named directories in a root. One process writes at a time, and holds the run's lock.

    Args:
      root: created by the first write.
      noun: what the directories are, as an error calls them: "checkpoint".
    """

    def __init__(self, root: Path, *, noun: str) -> None:
        self.root = root
        self._noun = noun

    def write(
        self,
        name: str,
        fill: Callable[[Path], None],
        facts: Mapping[str, Any],
        *,
        intact: Callable[[], str],
    ) -> Path:
        """Write a directory, and give it its name when it is safely on the disk.

        Killed at any instant, the process leaves the old one, if there was one, or the new one: should
        the old one be set aside at that moment, `tidy` puts it back.

        Args:
          name: of the directory; one of this name is replaced.
          fill: writes the files into an empty directory. Whatever it raises, nothing of them stays, and
            what was there before is unchanged.
          facts: kept in checksums.json; JSON.
          intact: says what is still there, for a message about a full disk.

        Raises:
          RunError: the disk is full.
        """
        writing = self._hidden("writing", name)
        try:
            make_directory(self.root)
            self.tidy()
            writing.mkdir()
            fill(writing)
            _seal(writing, {"format": FORMAT, **facts})
            self._put_in_place(name)
        except BaseException as error:
            taken = sum(file.lstat().st_size for file in files_below(writing))
            self.tidy()
            if isinstance(error, Exception) and disk_is_full(error):
                raise RunError(self._full(name, taken, intact())) from error
            raise
        return self.root / name

    def record(self, name: str) -> dict[str, Any]:
        """What checksums.json says, after comparing sizes, which takes no time.

        Raises:
          RunError: a file is missing or of another size, or checksums.json is not what was written.
        """
        path = self.root / name
        if not path.is_dir():
            raise RunError(f"{self._noun} {path} is missing")
        record = self._read(path)
        if record["format"] != FORMAT:
            raise RunError(
                f"{self._noun} {path} is of format {record['format']}, and this rlframe reads format "
                f"{FORMAT}: resume with the version that wrote it"
            )
        for file, written in record["files"].items():
            if not (path / file).is_file():
                raise self.damaged(path, f"{file} is missing: was all of it copied?")
            size = (path / file).stat().st_size
            if size != written["size"]:
                raise self.damaged(
                    path, f"{file} has {size} bytes, not {written['size']}: was a copy cut short?"
                )
        return record

    def verified(self, name: str) -> dict[str, Any]:
        """What checksums.json says, after reading every byte.

        Raises:
          RunError: it is damaged. The first file that is missing or of another size is named, or else
            the first whose content differs.
        """
        record, path = self.record(name), self.root / name
        for file, written in record["files"].items():
            try:
                digest = _sha256(path / file)
            except OSError as error:
                raise self.damaged(path, f"{file} cannot be read ({error.strerror})") from error
            if digest != written["sha256"]:
                raise self.damaged(
                    path,
                    f"the content of {file} has changed: did someone edit it, or does the disk fail?",
                )
        return record

    def remove(self, name: str) -> None:
        """Take a directory away; it is never seen in part."""
        (self.root / name).rename(self._hidden("removing", name))
        shutil.rmtree(self._hidden("removing", name))

    def tidy(self) -> None:
        """Remove what is not finished, and put back a directory whose replacement did not come."""
        for old in self.root.glob(".replaced-*"):
            path = self.root / old.name.removeprefix(".replaced-")
            if not path.exists():
                old.rename(path)
        for state in ("writing", "replaced", "removing"):
            for directory in self.root.glob(f".{state}-*"):
                shutil.rmtree(directory)

    def damaged(self, path: Path, what: str) -> RunError:
        """The error that says so."""
        return RunError(f"{self._noun} {path} is damaged: {what}")

    def _hidden(self, state: str, name: str) -> Path:
        return self.root / f".{state}-{name}"

    def _put_in_place(self, name: str) -> None:
        path, replaced = self.root / name, self._hidden("replaced", name)
        if path.exists():
            path.rename(replaced)
        self._hidden("writing", name).rename(path)
        sync(self.root)
        if replaced.exists():
            shutil.rmtree(replaced)

    def _read(self, path: Path) -> dict[str, Any]:
        """checksums.json, unless a byte of it has changed."""
        try:
            text = (path / _CHECKSUMS).read_bytes().decode()
            record: dict[str, Any] = json.loads(text)
            written = {key: value for key, value in record.items() if key != "sha256"}
            intact = text == sealed_text(written)
        except FileNotFoundError as error:
            raise self.damaged(path, f"{_CHECKSUMS} is missing: was all of it copied?") from error
        except (OSError, ValueError, AttributeError) as error:
            raise self.damaged(path, f"{_CHECKSUMS} cannot be read ({error})") from error
        if not intact:
            raise self.damaged(path, f"{_CHECKSUMS} has been changed")
        return record

    def _full(self, name: str, taken: int, intact: str) -> str:
        there = next(p for p in (self.root, *self.root.parents) if p.exists())
        return (
            f"{self.root}: no space left while {self._noun} {name} was being written. It had reached "
            f"{size_of(taken)} and is removed; {size_of(shutil.disk_usage(there).free)} are free now, "
            f"unless a quota says less. {intact}"
        )


def sealed_text(record: Mapping[str, Any]) -> str:
    """JSON with a checksum of its own behind the last key."""
    return json_text({**record, "sha256": checksum(record)}, indent=2) + "\n"


def checksum(record: Mapping[str, Any]) -> str:
    """sha256 of a mapping as JSON, whatever its spaces."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _seal(directory: Path, facts: Mapping[str, Any]) -> None:
    """Write checksums.json, and wait until all of the directory is on the disk."""
    files = {
        # now, while the files are in memory
        str(file.relative_to(directory)): {"size": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(files_below(directory))
    }
    with (directory / _CHECKSUMS).open("xb") as file:
        file.write(sealed_text({**facts, "files": files}).encode())
    for path in files_below(directory):
        sync(path)
    for inner, _, _ in os.walk(directory, topdown=False):
        sync(Path(inner))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
