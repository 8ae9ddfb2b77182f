"""Checkpoints on disk: whole or not there, and the newest sound one can always be found.

root/000020/                what `fill` wrote, and checksums.json
root/.writing-000030/       not finished
root/.replaced-000020/      the one before, while 000020 is being replaced
root/.removing-000010/      on its way out

A directory gets its name only when everything in it is on the disk. So a process that is killed, or a
machine that loses power, leaves hidden directories behind at most.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlframe.errors import RunError

_FORMAT = 1
_CHECKSUMS = "checksums.json"
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte is as it was written."""

    number: int
    path: Path
    score: float | None
    passed_over: tuple[str, ...] = ()
    """Why each newer one was not taken, the newest first."""


class CheckpointStore:
    """Numbered checkpoints in a directory. One process writes at a time, and holds the run's lock.

    Args:
      root: of the checkpoints; created by the first write. What killed writers left in it is removed.
      keep_last: how many of the newest stay, at least 1.
      keep_best: how many with the highest scores stay too; of equal scores, the newer.
    """

    def __init__(self, root: Path, *, keep_last: int, keep_best: int) -> None:
        if keep_last < 1 or keep_best < 0:
            raise ValueError(f"keep_last {keep_last} is below 1 or keep_best {keep_best} below 0")
        self._root = root
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._tidy()

    def write(
        self, number: int, fill: Callable[[Path], None], *, score: float | None = None
    ) -> Path:
        """Write a checkpoint, and when it is safely on the disk remove those that are kept no longer.

        Removed are only such with lower numbers, the damaged among them, which count for nothing.
        Higher ones, left behind by a return to an earlier checkpoint, stay until they are written anew.
        It takes room for one checkpoint more than are kept. Killed at any instant, the process leaves a
        sound checkpoint, if there was one before: should it be one that was just being replaced, the
        next store puts it back.

        Args:
          number: of the checkpoint; one of this number is replaced.
          fill: writes the files into an empty directory. Whatever it raises, nothing of them stays, and
            earlier checkpoints are as they were.
          score: higher is better; one that is not finite counts as none.

        Returns:
          The directory, root/<number, six digits>.

        Raises:
          RunError: the disk is full.
        """
        path = self.path(number)
        writing = self._hidden("writing", number)
        try:
            _make(self._root)
            self._tidy()
            writing.mkdir()
            fill(writing)
            _seal(writing, number, score if score is not None and math.isfinite(score) else None)
            self._put_in_place(number)
        except BaseException as error:
            taken = sum(file.lstat().st_size for file in _files(writing))
            self._tidy()
            if isinstance(error, Exception) and _disk_is_full(error):
                raise RunError(self._full(number, taken)) from error
            raise
        self._thin_out(number)
        return path

    def numbers(self) -> list[int]:
        """Of all checkpoints, ascending, the damaged among them."""
        names = (entry.name for entry in self._root.iterdir()) if self._root.is_dir() else ()
        return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{6}|[1-9][0-9]{6,}", name))

    def path(self, number: int) -> Path:
        """Where a checkpoint is, or would be."""
        if number < 0:
            raise ValueError(f"the number of a checkpoint is {number}")
        return self._root / f"{number:06d}"

    def verify(self, number: int) -> None:
        """Read all of a checkpoint.

        Raises:
          RunError: it is damaged. The first file that is missing or of another size is named, or else
            the first whose content differs.
        """
        self._verified(number)

    def newest(self) -> Checkpoint | None:
        """The newest that is sound, after reading all of it; None if there are no checkpoints.

        Raises:
          RunError: there are checkpoints, and each is damaged.
        """
        passed_over: list[str] = []
        for number in reversed(self.numbers()):
            try:
                score = self._verified(number)["score"]
            except RunError as error:
                passed_over.append(str(error))
                continue
            return Checkpoint(number, self.path(number), score, tuple(passed_over))
        if passed_over:
            raise RunError(
                "\n  ".join([f"{self._root}: there is no checkpoint to go on from:", *passed_over])
                + "\nBring one back from a copy, or begin anew with another --output."
            )
        return None

    def _hidden(self, state: str, number: int) -> Path:
        return self._root / f".{state}-{number:06d}"

    def _tidy(self) -> None:
        """Remove what is not finished, and put back a checkpoint whose replacement did not come."""
        for old in self._root.glob(".replaced-*"):
            path = self._root / old.name.removeprefix(".replaced-")
            if not path.exists():
                old.rename(path)
        for state in ("writing", "replaced", "removing"):
            for directory in self._root.glob(f".{state}-*"):
                shutil.rmtree(directory)

    def _put_in_place(self, number: int) -> None:
        path, replaced = self.path(number), self._hidden("replaced", number)
        if path.exists():
            path.rename(replaced)
        self._hidden("writing", number).rename(path)
        _sync(self._root)
        if replaced.exists():
            shutil.rmtree(replaced)

    def _thin_out(self, number: int) -> None:
        """Keep the last and the best of those up to `number`."""
        present = [n for n in self.numbers() if n <= number]
        scores: dict[int, float | None] = {}
        for n in present:
            try:
                scores[n] = self._record(n)["score"]
            except RunError:
                continue  # a damaged one must not take the place of one that is sound
        ranked = sorted((score, n) for n, score in scores.items() if score is not None)
        best = [n for _, n in ranked[::-1][: self._keep_best]]
        for n in sorted({*present} - {*list(scores)[-self._keep_last :], *best}):
            self.path(n).rename(self._hidden("removing", n))
            shutil.rmtree(self._hidden("removing", n))

    def _record(self, number: int) -> dict[str, Any]:
        """What checksums.json says, after comparing sizes, which takes no time."""
        path = self.path(number)
        if not path.is_dir():
            there = ", ".join(map(str, self.numbers())) or "none"
            raise RunError(f"{path}: there is no such checkpoint. There are: {there}")
        try:
            text = (path / _CHECKSUMS).read_bytes().decode()
            record = json.loads(text)
            written = {key: value for key, value in record.items() if key != "sha256"}
            intact = text == _sealed(written)
        except FileNotFoundError as error:
            raise _damaged(path, f"{_CHECKSUMS} is missing: was all of it copied?") from error
        except (OSError, ValueError, AttributeError) as error:
            raise _damaged(path, f"{_CHECKSUMS} can not be read ({error})") from error
        if not intact:
            raise _damaged(path, f"{_CHECKSUMS} has been changed")
        if record["format"] != _FORMAT:
            raise RunError(
                f"checkpoint {path} is of format {record['format']}, and this rlframe reads format "
                f"{_FORMAT}: go on with the version that wrote it"
            )
        if record["number"] != number:
            raise _damaged(path, f"it was written as number {record['number']}, and renamed")
        for name, file in record["files"].items():
            if not (path / name).is_file():
                raise _damaged(path, f"{name} is missing: was all of it copied?")
            size = (path / name).stat().st_size
            if size != file["size"]:
                raise _damaged(
                    path, f"{name} has {size} bytes, not {file['size']}: was a copy cut short?"
                )
        return record

    def _verified(self, number: int) -> dict[str, Any]:
        record, path = self._record(number), self.path(number)
        for name, file in record["files"].items():
            try:
                digest = _sha256(path / name)
            except OSError as error:
                raise _damaged(path, f"{name} can not be read ({error.strerror})") from error
            if digest != file["sha256"]:
                raise _damaged(
                    path,
                    f"the content of {name} has changed: did someone edit it, or does the disk fail?",
                )
        return record

    def _full(self, number: int, taken: int) -> str:
        try:
            before = self.newest()
            earlier = f"{before.path} is intact" if before else "There is no earlier checkpoint"
        except RunError as error:
            earlier = str(error)
        free = shutil.disk_usage(
            next(p for p in (self._root, *self._root.parents) if p.exists())
        ).free
        return (
            f"{self._root}: no space left while checkpoint {number} was being written. It had reached "
            f"{_size(taken)} and is removed; {_size(free)} are free now, unless a quota says less. "
            f"{earlier}. Free some space, or keep fewer (checkpoints.keep_last, "
            "checkpoints.keep_best), and resume"
        )


def _seal(directory: Path, number: int, score: float | None) -> None:
    """Write checksums.json, and wait until all of the directory is on the disk."""
    files = {
        # now, while the files are in memory
        str(file.relative_to(directory)): {"size": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(_files(directory))
    }
    record = {"format": _FORMAT, "number": number, "score": score, "files": files}
    with (directory / _CHECKSUMS).open("xb") as file:
        file.write(_sealed(record).encode())
    for path in _files(directory):
        _sync(path)
    for inner, _, _ in os.walk(directory, topdown=False):
        _sync(Path(inner))


def _sealed(record: dict[str, Any]) -> str:
    """The text of checksums.json, which has a checksum too."""
    digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return json.dumps({**record, "sha256": digest}, indent=2) + "\n"


def _files(directory: Path) -> Iterator[Path]:
    """All files of a directory and those within it."""
    for inner, _, names in os.walk(directory):
        yield from (Path(inner) / name for name in names)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make(directory: Path) -> None:
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync(directory.parent)


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether that is what lies behind an error. safetensors and torch say it in words alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(os.strerror(n) in str(error) for n in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"checkpoint {path} is damaged: {what}")


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
