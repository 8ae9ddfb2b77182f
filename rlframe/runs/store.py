"""The numbered checkpoints of a stage: the newest sound one can always be found.

Each is a directory that `sealed.py` keeps whole: root/000020/ with what was written and checksums.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlframe.errors import RunError
from rlframe.runs.sealed import SealedDirectories


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
      origin: what each checkpoint says it came from, such as the run; JSON.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep_last: int,
        keep_best: int,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        if keep_last < 1 or keep_best < 0:
            raise ValueError(f"keep_last {keep_last} is below 1 or keep_best {keep_best} below 0")
        self._root = root
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._origin = dict(origin or {})
        self._sealed = SealedDirectories(root, noun="checkpoint")
        self._sealed.tidy()

    def write(
        self, number: int, fill: Callable[[Path], None], *, score: float | None = None
    ) -> Path:
        """Write a checkpoint, and when it is safely on the disk remove those that are kept no longer.

        Removed are only such with lower numbers, the damaged among them, which count for nothing.
        Higher ones, left behind by a return to an earlier checkpoint, stay until they are rewritten.
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
        facts = {
            "number": number,
            "score": score if score is not None and math.isfinite(score) else None,
            **self._origin,
        }
        path = self._sealed.write(self.name_of(number), fill, facts, intact=self._intact)
        self._thin_out(number)
        return path

    def numbers(self) -> list[int]:
        """Of all checkpoints, ascending, the damaged among them."""
        return self.numbers_in(self._root)

    @staticmethod
    def numbers_in(root: Path) -> list[int]:
        """Of all checkpoints in a directory, ascending, the damaged among them."""
        names = (entry.name for entry in root.iterdir()) if root.is_dir() else ()
        return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{6}|[1-9][0-9]{6,}", name))

    @staticmethod
    def name_of(number: int) -> str:
        """Of the directory of a checkpoint."""
        if number < 0:
            raise ValueError(f"the number of a checkpoint is {number}")
        return f"{number:06d}"

    def path(self, number: int) -> Path:
        """Where a checkpoint is, or would be."""
        return self._root / self.name_of(number)

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
                "\n  ".join([f"{self._root}: there is no checkpoint to resume from:", *passed_over])
                + "\nBring one back from a copy, or start again with another --output."
            )
        return None

    def record(self, number: int) -> dict[str, Any]:
        """What a checkpoint says of itself: number, score, origin and files.

        Raises:
          RunError: it is not there, or a look at its files shows that it is damaged.
        """
        if not self.path(number).is_dir():
            there = ", ".join(map(str, self.numbers())) or "none"
            raise RunError(f"{self.path(number)}: there is no such checkpoint. There are: {there}")
        return self._own(number, self._sealed.record(self.name_of(number)))

    def _verified(self, number: int) -> dict[str, Any]:
        self.record(number)
        return self._own(number, self._sealed.verified(self.name_of(number)))

    def _own(self, number: int, record: dict[str, Any]) -> dict[str, Any]:
        if record["number"] != number:
            what = f"it was written as number {record['number']}, and renamed"
            raise self._sealed.damaged(self.path(number), what)
        return record

    def _thin_out(self, number: int) -> None:
        """Keep the last and the best of those up to `number`."""
        present = [n for n in self.numbers() if n <= number]
        scores: dict[int, float | None] = {}
        for n in present:
            try:
                scores[n] = self.record(n)["score"]
            except RunError:
                continue  # a damaged one must not take the place of one that is sound
        ranked = sorted((score, n) for n, score in scores.items() if score is not None)
        best = [n for _, n in ranked[::-1][: self._keep_best]]
        for n in sorted({*present} - {*list(scores)[-self._keep_last :], *best}):
            self._sealed.remove(self.name_of(n))

    def _intact(self) -> str:
        """What a message about a full disk says besides."""
        try:
            before = self.newest()
            earlier = f"{before.path} is intact" if before else "There is no earlier checkpoint"
        except RunError as error:
            earlier = str(error)
        return (
            f"{earlier}. Free some space, or keep fewer (checkpoints.keep_last, "
            "checkpoints.keep_best), and resume"
        )
