"""The PPO stage: the watch before, the loop with its record and checkpoints, the watch after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlframe.api.component import Component
from rlframe.api.events import CheckpointSaved, Metrics, RunFinished, RunStarted
from rlframe.distributed.runtime import Runtime
from rlframe.distributed.training import Training
from rlframe.engine.average import Average
from rlframe.engine.checkpoint import (
    Progress,
    load_average,
    load_progress,
    load_weights,
    save_models,
    save_progress,
)
from rlframe.engine.judge import Judge
from rlframe.engine.learner import Learner
from rlframe.engine.metrics import Clock
from rlframe.engine.ppo import Run, Update, train
from rlframe.engine.states import component_states, restore_states
from rlframe.errors import RunError
from rlframe.models.actor_critic import ActorCritic
from rlframe.registry.relay import Relay
from rlframe.runs.directory import RunDirectory
from rlframe.runs.display import Display
from rlframe.runs.evaluation import Answer, HeldOut, Watch, before_and_after, what_changed
from rlframe.runs.recorder import update_metrics
from rlframe.runs.saving import Saver
from rlframe.types import KLState


@dataclass
class Recorder:
    """Called at the end of each update: metrics, the held-out watch, checkpoints, the display.

    Args:
      updates: of the whole run.
      evaluate_every: updates between two looks at the held-out prompts; None for no look in between.
      average: of the policy's weights, taken here, before anything is saved of an update.
    """

    directory: RunDirectory
    display: Display
    runtime: Runtime
    training: Training
    models: ActorCritic
    tokenizer: PreTrainedTokenizerBase
    components: Mapping[str, Component[Any]]
    learner: Learner
    judge: Judge
    watch: Watch
    whole: Callable[[], AbstractContextManager[None]]
    relay: Relay
    saver: Saver
    penalty: bool
    updates: int
    evaluate_every: int | None
    average: Average | None = None
    episodes: int = 0
    last_kl: float = 0.0
    _progress: Progress | None = None
    """Of the last update, which the result keeps, so that the run can be given more."""

    def __call__(self, update: Update, clock: Clock) -> None:
        done = update.number + 1
        self.episodes += update.measured.responses
        self.last_kl = update.measured.nats_per_response
        if self.average is not None:
            with clock.phase("average"):
                self.average.update()
        figures = update_metrics(
            update, clock, penalty=self.penalty, episodes=self.episodes, reduce=self.runtime.sum
        )
        figures["memory/peak_mib"] = self.runtime.peak_memory_mib()
        figures["time/collectives_seconds"] = self.runtime.waited() + self.training.waited()
        score = None
        if self.evaluate_every and done % self.evaluate_every == 0 and done < self.updates:
            looked = self.look(f"update_{done:06d}")
            score, figures = looked.mean, figures | looked.metrics()
        figures["hooks/observer_errors"] = self.relay.errors
        self.directory.metrics({"stage": "ppo", "update": done, **figures})
        self.relay.tell("metrics", Metrics(update.number, MappingProxyType(figures)))
        self.display.step(done, self.updates, figures)
        if done == self.updates:
            self._progress = self._after(update)
        with clock.phase("checkpoint"):
            self.saver.after(
                done, lambda: self.checkpoint(update, score), last=done == self.updates
            )

    def look(self, name: str) -> HeldOut:
        """Ask the policy of the moment and keep the answers."""
        with self.whole():
            seen = self.watch.look()
        self.directory.samples(name, (answer.row() for answer in seen.answers))
        return seen

    def save(self) -> None:
        """Write the models as the result of the stage; every rank has to come here."""
        weights, progress = self.training.weights(), self._progress
        assert progress is not None

        def fill(path: Path) -> None:
            self._write(weights, path)
            save_progress(path, progress, None)

        self.directory.write_result("ppo", fill, number=progress.updates)

    def _write(self, weights: Mapping[str, Tensor], path: Path) -> None:
        average = None if self.average is None else self.average.weights
        save_models(weights, self.models, self.tokenizer, path, average=average)

    def checkpoint(self, update: Update, score: float | None) -> None:
        """Write the models and the engine's state after an update; every rank has to come here."""
        weights, memory = self.training.weights(), self.training.optimizer_state()
        progress = self._after(update)

        def fill(path: Path) -> None:
            self._write(weights, path)
            save_progress(path, progress, memory)

        self.directory.sync()
        path = self.saver.write(progress.updates, fill, score=score)
        self.relay.tell("checkpoint_saved", CheckpointSaved(update.number, path))

    def _after(self, update: Update) -> Progress:
        """Where the run stands after an update; every rank has to come here."""
        states = component_states(self.components)
        return Progress(
            updates=update.number + 1,
            kl=update.next_kl,
            learner=self.learner.state_dict(),
            judge=self.judge.state_dict(),
            episodes=self.episodes,
            last_kl=self.last_kl,
            observer_errors=self.relay.errors,
            components=self.runtime.gather(states),
        )

    def restore(self, path: Path) -> tuple[int, KLState]:
        """Go back to a checkpoint, or to the result of a run that is to make more updates.

        Returns:
          (the updates done, the KL state of the next one).
        """
        progress, memory = load_progress(path)
        self.training.load_weights(load_weights(path, self.models))
        if memory is not None:
            self.training.load_optimizer_state(memory)
        if (
            self.average is not None
        ):  # after the weights: from them it begins if it was not kept then
            self.average.begin(load_average(path, self.models))
        self.learner.load_state_dict(progress.learner)
        self.judge.load_state_dict(progress.judge)
        restore_states(self.components, progress.of_rank(self.runtime.rank))
        self.episodes, self.last_kl = progress.episodes, progress.last_kl
        self.relay.errors = progress.observer_errors
        missing = self.directory.forget_after(progress.updates)
        if missing is not None:
            self.display.say(missing)
        return progress.updates, progress.kl


@dataclass(frozen=True)
class Aligned:
    """What the stage did, for whoever asks."""

    before: HeldOut
    after: HeldOut
    sentence: str


def align(
    build: Callable[[Recorder, int], Run],
    recorder: Recorder,
    *,
    table_rows: int,
    resolved: Mapping[str, Any],
) -> Aligned:
    """Run PPO between two looks at the held-out prompts, and say what changed.

    Args:
      build: makes the run around its recorder, from an update on.
      recorder: keeps what happens, and knows the newest checkpoint.
      table_rows: prompts to show.
      resolved: the recipe with every default, for observers.
    """
    relay, directory = recorder.relay, recorder.directory.path
    relay.tell("run_started", RunStarted(directory, recorder.updates, resolved))
    try:
        done = _between_two_looks(build, recorder, table_rows)
    except BaseException as error:
        relay.tell("run_finished", RunFinished(directory, error))
        raise
    relay.tell("run_finished", RunFinished(directory, None))
    return done


def _between_two_looks(
    build: Callable[[Recorder, int], Run], recorder: Recorder, table_rows: int
) -> Aligned:
    component_states(recorder.components)  # one that cannot be saved is told before hours of work
    start, kl, before = _begin(recorder)
    run = build(recorder, start)
    train(run, run.control.initial() if kl is None else kl)
    after = recorder.look("after")
    path = recorder.directory.path / "ppo"
    recorder.save()
    recorder.relay.tell("checkpoint_saved", CheckpointSaved(recorder.updates - 1, path))
    sentence = what_changed(before, after, kl=recorder.last_kl)
    recorder.directory.metrics({"stage": "ppo", "update": recorder.updates, **after.metrics()})
    recorder.display.show(before_and_after(before, after, rows=table_rows))
    recorder.display.say(sentence)
    return Aligned(before, after, sentence)


def _begin(recorder: Recorder) -> tuple[int, KLState | None, HeldOut]:
    """(first update, its KL state, what the policy said before any), from a checkpoint or new."""
    newest = recorder.saver.newest()
    result = _result(recorder) if newest is None else None
    if result is not None:
        recorder.display.say(
            f"resuming after update {result['number']}, from {recorder.directory.path / 'ppo'}. It "
            "keeps no memory of the optimiser, whose moments start at zero"
        )
        before = _asked_before(recorder)
        return *recorder.restore(recorder.directory.path / "ppo"), before
    if newest is None:
        recorder.directory.forget_after(0)
        if recorder.average is not None:
            recorder.average.begin(None)
        return 0, None, recorder.look("before")
    for damage in newest.passed_over:
        recorder.display.say(f"passed over: {damage}")
    recorder.display.say(f"resuming after update {newest.number}, from {newest.path}")
    before = _asked_before(recorder)
    start, kl = recorder.restore(newest.path)
    return start, kl, before


def _result(recorder: Recorder) -> Mapping[str, Any] | None:
    """What an earlier end of this run left, if fewer updates led to it than are wanted now."""
    directory, runtime = recorder.directory, recorder.runtime
    try:
        found = directory.result("ppo") if runtime.main and directory.has_result("ppo") else None
    except RunError as damage:
        recorder.display.say(f"{damage}. PPO is run again from its first update")
        found = None
    found = runtime.broadcast(found)
    return found if found is not None and found["number"] < recorder.updates else None


def _asked_before(recorder: Recorder) -> HeldOut:
    """What the policy said before PPO: from the samples, or once more where they are damaged.

    That comes before a checkpoint is loaded, so that the answers are the same.
    """
    directory, runtime = recorder.directory, recorder.runtime
    rows = runtime.broadcast(directory.read_samples("before") if runtime.main else None)
    if rows is not None:
        return HeldOut(tuple(Answer.of_row(row) for row in rows))
    path = directory.path / "samples" / "before.jsonl"
    recorder.display.say(f"{path} is missing or damaged: the held-out prompts are answered anew")
    return recorder.look("before")
