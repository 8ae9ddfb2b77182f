"""When a stage saves a checkpoint, and when the run is asked to end: all ranks decide alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlframe.distributed.runtime import Runtime
from rlframe.errors import Stopped
from rlframe.runs.stopping import StopRequest
from rlframe.runs.store import Checkpoint, CheckpointStore


@dataclass(frozen=True)
class Rhythm:
    """How often checkpoints are saved and which of them stay; see the recipe's `checkpoints`."""

    every: int | None
    every_minutes: float | None
    keep_last: int
    keep_best: int


class Saver:
    """The checkpoints of one stage.

    Args:
      directory: of the stage's checkpoints.
      rhythm: when to save.
      runtime: the rank that writes, and agreement of all.
      stop: asked after every step.
      origin: what each checkpoint says it came from.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rhythm: Rhythm,
        runtime: Runtime,
        stop: StopRequest,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self._rhythm = rhythm
        self.runtime = runtime
        self._stop = stop
        self._saved = time.monotonic()
        self._store = (
            CheckpointStore(
                directory,
                keep_last=rhythm.keep_last,
                keep_best=rhythm.keep_best,
                origin=origin,
            )
            if runtime.main
            else None
        )

    def newest(self) -> Checkpoint | None:
        """The newest sound checkpoint, as every rank is to load it.

        Raises:
          RunError: there are checkpoints, and each is damaged.
        """
        return self.runtime.broadcast(self._store.newest() if self._store else None)

    def after(self, done: int, save: Callable[[], None], *, last: bool) -> None:
        """Save if it is time, or if the run is asked to stop. Every rank has to call it.

        Args:
          done: steps done.
          save: calls `write`.
          last: whether no step follows: then nothing is saved, since the result is.

        Raises:
          Stopped: the run was asked to stop, and a checkpoint is saved.
        """
        asked = self.runtime.gather((self._stop.reason(), self._due(done)))
        reason = next((reason for reason, _ in asked if reason), None)
        if last or not (reason or asked[0][1]):
            return
        save()
        if reason:
            raise Stopped(f"{reason}: a checkpoint was saved after step {done}")

    def _due(self, done: int) -> bool:
        every, minutes = self._rhythm.every, self._rhythm.every_minutes
        waited = time.monotonic() - self._saved
        return bool(every and done % every == 0) or bool(minutes and waited >= 60 * minutes)

    def write(self, done: int, fill: Callable[[Path], None], *, score: float | None = None) -> Path:
        """Write a checkpoint on the rank that writes; the others wait for it. Returns where.

        Raises:
          RunError: the disk is full.
        """
        path = None if self._store is None else self._store.write(done, fill, score=score)
        self._saved = time.monotonic()
        where = self.runtime.broadcast(path)
        assert where is not None
        return where
