"""The PPO stage: the watch before, the loop with its record, the watch after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlframe.distributed.runtime import Runtime
from rlframe.engine.checkpoint import save_models, save_state
from rlframe.engine.metrics import Clock
from rlframe.engine.ppo import Run, Update, train
from rlframe.hooks.component import Component
from rlframe.hooks.events import CheckpointSaved, Metrics, RunFinished, RunStarted
from rlframe.hooks.relay import Relay
from rlframe.models.actor_critic import ActorCritic
from rlframe.runs.directory import RunDirectory
from rlframe.runs.display import Display
from rlframe.runs.evaluation import HeldOut, Watch, before_and_after, what_changed
from rlframe.runs.recorder import update_metrics


@dataclass
class Recorder:
    """Called at the end of each update: metrics, the held-out watch, checkpoints, the display.

    Args:
      updates: of the whole run.
      evaluate_every: updates between two looks at the held-out prompts; None for no look in between.
      checkpoint_every: updates between two checkpoints; None for none in between.
    """

    directory: RunDirectory
    display: Display
    runtime: Runtime
    models: ActorCritic
    tokenizer: PreTrainedTokenizerBase
    components: Mapping[str, Component[Any]]
    watch: Watch
    relay: Relay
    penalty: bool
    updates: int
    evaluate_every: int | None
    checkpoint_every: int | None
    episodes: int = 0
    last_kl: float = 0.0

    def __call__(self, update: Update, clock: Clock) -> None:
        done = update.number + 1
        self.episodes += update.measured.responses
        self.last_kl = update.measured.nats_per_response
        figures = update_metrics(
            update, clock, penalty=self.penalty, episodes=self.episodes, reduce=self.runtime.sum
        )
        figures["memory/peak_mib"] = self.runtime.peak_memory_mib()
        if self.evaluate_every and done % self.evaluate_every == 0 and done < self.updates:
            figures |= self.look(f"update_{done:06d}").metrics()
        figures["hooks/observer_errors"] = self.relay.errors
        self.directory.metrics({"stage": "ppo", "update": done, **figures})
        self.relay.tell("metrics", Metrics(update.number, MappingProxyType(figures)))
        self.display.step(done, self.updates, figures)
        if self.checkpoint_every and done % self.checkpoint_every == 0:
            self.checkpoint(self.directory.path / "ppo" / "checkpoints" / f"{done:06d}", update)

    def look(self, name: str) -> HeldOut:
        """Ask the policy of the moment and keep the answers."""
        seen = self.watch.look()
        self.directory.samples(name, seen.rows())
        return seen

    def checkpoint(self, path: Path, update: Update) -> None:
        """Write the models and the engine's state after an update."""
        save_models(self.models, self.tokenizer, path)
        save_state(path, update=update.number, kl=update.next_kl, components=self.components)
        self.relay.tell("checkpoint_saved", CheckpointSaved(update.number, path))


@dataclass(frozen=True)
class Aligned:
    """What the stage did, for whoever asks."""

    before: HeldOut
    after: HeldOut
    sentence: str


def align(
    build: Callable[[Recorder], Run],
    recorder: Recorder,
    *,
    table_rows: int,
    resolved: Mapping[str, Any],
) -> Aligned:
    """Run PPO between two looks at the held-out prompts, and say what changed.

    Args:
      build: makes the run around its recorder.
      recorder: keeps what happens.
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
    build: Callable[[Recorder], Run], recorder: Recorder, table_rows: int
) -> Aligned:
    before = recorder.look("before")
    run = build(recorder)
    train(run, run.control.initial())
    after = recorder.look("after")
    path = recorder.directory.path / "ppo"
    save_models(recorder.models, recorder.tokenizer, path)
    recorder.relay.tell("checkpoint_saved", CheckpointSaved(recorder.updates - 1, path))
    sentence = what_changed(before, after, kl=recorder.last_kl)
    recorder.directory.metrics({"stage": "ppo", "update": recorder.updates, **after.metrics()})
    recorder.display.show(before_and_after(before, after, rows=table_rows))
    recorder.display.say(sentence)
    return Aligned(before, after, sentence)
