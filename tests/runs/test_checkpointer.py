"""What a stage keeps is written when it is due, and comes back unchanged, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlframe.api import HookPlugin, PluginConfig, hookimpl
from rlframe.api.component import Instance
from rlframe.api.events import CheckpointSaved
from rlframe.distributed.runtime import Runtime
from rlframe.errors import RunError, Stopped
from rlframe.registry.relay import Relay
from rlframe.runs.checkpointer import Checkpointer
from rlframe.runs.directory import RunDirectory
from rlframe.runs.saving import Rhythm, Saver

RUNTIME = Runtime(device="cpu")


class Weights:
    """A model of one number, kept as a file; the number is that of the moment of `gather`."""

    def __init__(self) -> None:
        self.number = 0

    def gather(self) -> Callable[[Path], None]:
        now = self.number
        return lambda path: (path / "model").mkdir() or (path / "model" / "n").write_text(str(now))  # type: ignore[func-returns-value]

    def load(self, directory: Path) -> None:
        self.number = int((directory / "model" / "n").read_text())


class Remembers:
    def __init__(self, **state: Any) -> None:
        self.state: Mapping[str, Any] = state

    def state_dict(self) -> Mapping[str, Any]:
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = state


class Notes(HookPlugin[PluginConfig]):
    seen: list[CheckpointSaved]

    @hookimpl
    def rlframe_checkpoint_saved(self, event: CheckpointSaved) -> None:
        self.seen.append(event)


class Stage:
    """A stage of six steps that is saved after every second one."""

    def __init__(self, path: Path, *, last: int = 9, best: int = 0, resumed: bool = False) -> None:
        manifest = {"run": "r", "digest": "d"}
        self.files = RunDirectory(path, manifest=manifest if resumed else None)
        if not resumed:
            self.files.note(**manifest)
        self.reason: str | None = None
        stop: Any = SimpleNamespace(reason=lambda: self.reason)
        rhythm = Rhythm(every=2, every_minutes=None, keep_last=last, keep_best=best)
        saver = Saver(path / "checkpoints" / "ppo", rhythm=rhythm, runtime=RUNTIME, stop=stop)
        notes = Notes(PluginConfig(), None)  # type: ignore[arg-type]
        notes.seen = self.saved = []
        self.weights, self.memory = Weights(), Remembers(moment=torch.zeros(2))
        self.kept = {"first": Remembers(count=0), "second": Remembers(words=["a"])}
        self.checkpoints = Checkpointer(
            self.files,
            saver,
            Relay([Instance("notes", "notes", notes)]),
            weights=self.weights,
            optimizer=self.memory,
            kept=self.kept,
            steps=6,
        )

    def step(self, number: int, score: float | None = None, *, ends: bool = False) -> None:
        """Everything that is kept becomes a function of the step."""
        self.weights.number = number
        self.memory.state = {"moment": torch.full((2,), float(number))}
        self.kept["first"].state = {"count": number}
        self.kept["second"].state = {"words": ["a"] * number}
        state = {"updates": number, "kl": {"coefficient": 0.5}}
        self.checkpoints.after(number, state, score=score, ends=ends)

    def now(self) -> tuple[Any, ...]:
        states = [thing.state for thing in self.kept.values()]
        return self.weights.number, self.memory.state["moment"].tolist(), *states


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "run")


def names(stage: Stage) -> list[str]:
    return sorted(p.name for p in (stage.files.path / "checkpoints" / "ppo").glob("[0-9]*"))


def test_it_saves_when_it_is_due_and_nothing_after_the_last_step(stage: Stage) -> None:
    for number in range(1, 7):
        stage.step(number)
    assert names(stage) == ["000002", "000004"]
    assert [(event.update, event.directory.name) for event in stage.saved] == [
        (1, "000002"),
        (3, "000004"),
    ]


def test_everything_comes_back_as_it_was_when_it_was_saved(stage: Stage, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        stage.step(number)
    other = Stage(tmp_path / "run", resumed=True)
    newest = other.checkpoints.saver.newest()
    assert newest is not None
    loop = other.checkpoints.restore(newest.path)
    assert loop == {"updates": 2, "kl": {"coefficient": 0.5}}
    assert other.now() == (2, [2.0, 2.0], {"count": 2}, {"words": ["a", "a"]})


def test_the_result_has_the_weights_of_now_and_the_states_after_the_last_step(
    stage: Stage, tmp_path: Path
) -> None:
    for number in range(1, 7):
        stage.step(number)
    stage.kept["first"].state = {"count": 99}  # an evaluation after the last step
    stage.checkpoints.save_result("ppo")
    assert stage.saved[-1] == CheckpointSaved(5, stage.files.path / "ppo")
    assert not (stage.files.path / "ppo" / "optimizer.json").exists()
    assert stage.files.result("ppo")["number"] == 6
    other = Stage(tmp_path / "run", resumed=True)
    loop = other.checkpoints.restore(stage.files.path / "ppo")
    assert loop["updates"] == 6
    assert other.now() == (6, [0.0, 0.0], {"count": 6}, {"words": ["a"] * 6})


def test_where_no_step_is_left_the_result_has_the_states_of_the_checkpoint(
    stage: Stage, tmp_path: Path
) -> None:
    stage.step(2)
    other = Stage(tmp_path / "run", resumed=True)
    newest = other.checkpoints.saver.newest()
    assert newest is not None
    other.checkpoints.restore(newest.path)
    other.checkpoints.save_result("ppo")
    third = Stage(tmp_path / "run", resumed=True)
    assert third.checkpoints.restore(stage.files.path / "ppo")["updates"] == 2
    assert third.now()[2:] == ({"count": 2}, {"words": ["a", "a"]})


def test_asked_to_stop_it_saves_first(stage: Stage) -> None:
    stage.step(1)
    stage.reason = "SIGTERM"
    with pytest.raises(Stopped, match="SIGTERM: a checkpoint was saved after step 3"):
        stage.step(3)
    assert names(stage) == ["000003"]
    assert len(stage.saved) == 1  # observers know of it, too


def test_asked_to_stop_at_the_last_step_it_finishes(stage: Stage) -> None:
    stage.reason = "SIGTERM"
    stage.step(6)
    stage.checkpoints.save_result("ppo")
    assert names(stage) == []


def test_a_stage_that_ends_early_has_a_checkpoint_beside_its_result(stage: Stage) -> None:
    """With the optimiser's memory, so that it can be resumed as if it had not ended."""
    stage.step(1)
    stage.step(3, ends=True)
    stage.checkpoints.save_result("ppo")
    assert names(stage) == ["000003"]
    assert stage.files.result("ppo")["number"] == 3
    assert stage.saved[-1] == CheckpointSaved(2, stage.files.path / "ppo")


def test_a_stage_that_would_end_anyway_has_its_result_alone(stage: Stage) -> None:
    stage.step(6, ends=True)
    stage.checkpoints.save_result("ppo")
    assert names(stage) == []
    assert stage.files.result("ppo")["number"] == 6


def test_the_best_by_score_stays(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "run", last=1, best=1)
    for number, score in ((2, 1.0), (3, None), (4, 5.0), (5, None), (6, None)):
        stage.step(number, score)
    assert names(stage) == ["000004"]
    stage = Stage(tmp_path / "other", last=1, best=1)
    stage.checkpoints._steps = 99
    for number, score in ((2, 5.0), (4, 1.0), (6, 0.0)):
        stage.step(number, score)
    assert names(stage) == ["000002", "000006"]


def test_a_state_that_is_missing_is_named(stage: Stage, tmp_path: Path) -> None:
    stage.step(2)
    other = Stage(tmp_path / "run", resumed=True)
    other.checkpoints._kept["third"] = Remembers()
    newest = other.checkpoints.saver.newest()
    assert newest is not None
    with pytest.raises(RunError, match=r"000002: there is no state of third in it"):
        other.checkpoints.restore(newest.path)


def test_before_the_first_step_it_asks_every_state(stage: Stage) -> None:
    def broken() -> Mapping[str, Any]:
        raise RunError("rewards.mine: cannot be saved")

    stage.checkpoints.check()
    stage.kept["second"].state_dict = broken  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"rewards\.mine"):
        stage.checkpoints.check()
