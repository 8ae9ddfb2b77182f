"""The PPO stage: an evaluation before, the training loop, an evaluation after, and what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlframe.api.events import RunFinished, RunStarted
from rlframe.distributed.runtime import Runtime
from rlframe.engine.ema import EMA
from rlframe.engine.heldout import Answer, HeldOut
from rlframe.engine.ppo import Run, RunState, train
from rlframe.errors import RunError
from rlframe.runs.directory import RunDirectory
from rlframe.runs.display import Display
from rlframe.stages.behaviour import before_and_after, what_changed
from rlframe.types import KLState


@dataclass(frozen=True)
class Aligned:
    """What the stage did, for whoever asks."""

    before: HeldOut
    after: HeldOut
    sentence: str
    stopped: str | None = None
    """Why an observer ended it before its last update, and which one; None if it went to the end."""


@dataclass(frozen=True)
class PPOStage:
    """A PPO run between two evaluations on held-out prompts.

    Args:
      run: its parts.
      directory: of the run.
      display: shows what changed.
      runtime: the processes.
      ema: the moving average, if the recipe asks for one.
      table_rows: prompts to show.
      resolved: the recipe with every default, for observers.
    """

    run: Run
    directory: RunDirectory
    display: Display
    runtime: Runtime
    ema: EMA | None
    table_rows: int
    resolved: Mapping[str, Any]

    def align(self) -> Aligned:
        """Train, resuming from the newest checkpoint if there is one. Collective: call on all ranks."""
        observers, path = self.run.observers, self.directory.path
        observers.tell("run_started", RunStarted(path, self.resolved))
        try:
            done = self._align()
        except BaseException as error:
            observers.tell("run_finished", RunFinished(error))
            self._close_after(error)
            raise
        self.run.generator.close()
        observers.tell("run_finished", RunFinished(None))
        return done

    def _close_after(self, error: BaseException) -> None:
        """Close the sampler; what ended the run stays what is reported."""
        try:
            self.run.generator.close()
        except RunError as second:
            error.add_note(str(second))

    def _align(self) -> Aligned:
        run = self.run
        run.checkpoints.check()
        state, before = self._begin()
        state = train(run, state)
        after = run.heldout.evaluate("after", state.updates)
        run.checkpoints.save_result("ppo")
        sentence = what_changed(before, after, kl=run.metrics.last_kl)
        self.directory.metrics({"stage": "ppo", "update": state.updates, **after.metrics()})
        self.display.show(before_and_after(before, after, rows=self.table_rows))
        self.display.say(sentence)
        # An observer may be content just as the last update is done: nothing was left out then.
        stopped = run.stop_reason() if state.updates < run.updates else None
        if stopped is not None:
            self.display.say(
                f"stopped early after update {state.updates} of {run.updates} by {stopped}. `rlframe "
                f"resume {self.directory.path}` makes the others"
            )
        return Aligned(before, after, sentence, stopped)

    def _begin(self) -> tuple[RunState, HeldOut]:
        """(where to start, what the policy answered before any update)."""
        newest = self.run.checkpoints.saver.newest()
        path = None if newest is None else newest.path
        if newest is not None:
            self._refuse_fewer(newest.number)
            for damage in newest.passed_over:
                self.display.say(f"passed over: {damage}")
            self.display.say(f"resuming after update {newest.number}, from {path}")
        elif (updates := self._updates_of_result()) is not None:
            path = self.directory.path / "ppo"
            self.display.say(
                f"resuming after update {updates}, from {path}. It keeps no memory of the optimiser, "
                "whose moments start at zero"
            )
        if path is None:
            return self._new()
        # Before a checkpoint is loaded: should they be answered again, the answers are the same.
        before = self._answered_before()
        loop = self.run.checkpoints.restore(path)
        missing = self.directory.forget_after(loop["updates"])
        if missing is not None:
            self.display.say(missing)
        return RunState(loop["updates"], KLState(**loop["kl"])), before

    def _refuse_fewer(self, done: int) -> None:
        """What has been learned cannot be taken back.

        Raises:
          RunError: more updates are done than the recipe asks for.
        """
        if done > self.run.updates:
            raise RunError(
                f"ppo.updates is {self.run.updates}, but this run has made {done} updates according to "
                f"its newest checkpoint. Resume it with ppo.updates={done} or more, or begin a new run"
            )

    def _new(self) -> tuple[RunState, HeldOut]:
        self.directory.forget_after(0)
        if self.ema is not None:
            self.ema.begin(None)
        return RunState(0, self.run.control.initial()), self.run.heldout.evaluate("before", 0)

    def _updates_of_result(self) -> int | None:
        """Of what an earlier end of this run left, if fewer updates led to it than are wanted now."""
        found = None
        try:
            if self.runtime.main and self.directory.has_result("ppo"):
                found = self.directory.result("ppo")["number"]
        except RunError as damage:
            self.display.say(f"{damage}. PPO is run again from its first update")
        found = self.runtime.broadcast(found)
        return found if found is not None and found < self.run.updates else None

    def _answered_before(self) -> HeldOut:
        """What the policy answered before PPO: from the samples, or again where they are damaged."""
        directory = self.directory
        rows = self.runtime.broadcast(directory.read_samples("before") if directory.main else None)
        if rows is not None:
            return HeldOut(tuple(Answer.of_row(row) for row in rows))
        path = directory.path / "samples" / "before.jsonl"
        self.display.say(f"{path} is missing or damaged: the held-out prompts are answered again")
        return self.run.heldout.evaluate("before", 0)
