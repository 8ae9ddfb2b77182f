from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rlframe_observers import EarlyStopping, RolloutLog

from rlframe.api import StopReason, StopTraining
from rlframe.api.events import (
    CheckpointSaved,
    HeldoutEvaluated,
    RolloutScored,
    RunFinished,
    RunStarted,
    ScoredResponse,
)
from rlframe.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "recipe.yaml"
EVALUATED = {"evaluation": {"every": 1}}


def context(rank: int = 0) -> Any:
    return SimpleNamespace(rank=rank)


def responses(*scores: float | None, brief: float | None = 0.0) -> tuple[ScoredResponse, ...]:
    return tuple(
        ScoredResponse(n, n // 2, "a?", f"b{n}", StopReason.EOS, score, {"brief": brief})
        for n, score in enumerate(scores)
    )


def stopping(folder: Path, rank: int = 0, **keys: Any) -> EarlyStopping:
    plugin = EarlyStopping(EarlyStopping.Config(**keys), context(rank))  # type: ignore[arg-type]
    plugin.rlframe_run_started(RunStarted(folder, EVALUATED))
    return plugin


def evaluated(plugin: EarlyStopping, updates: int, *scores: float | None, **more: Any) -> None:
    event = HeldoutEvaluated(f"update_{updates:06d}", updates, responses(*scores, **more))
    plugin.rlframe_heldout_evaluated(event)


def test_it_ends_after_as_many_evaluations_without_a_better_score_as_it_has_patience(
    tmp_path: Path,
) -> None:
    plugin = stopping(tmp_path, patience=2)
    for updates, score in enumerate((0.0, 1.0, 0.5, 1.5, 1.5)):
        evaluated(plugin, updates, score, score)
    words = "the held-out score has not risen above 1.5, that of update 3, in 2 evaluations"
    with pytest.raises(StopTraining, match=words):
        evaluated(plugin, 5, 1.4)


def test_a_gain_that_is_too_small_is_none(tmp_path: Path) -> None:
    plugin = stopping(tmp_path, patience=1, least_gain=0.5)
    evaluated(plugin, 0, 1.0)
    evaluated(plugin, 1, 1.75)
    with pytest.raises(StopTraining):
        evaluated(plugin, 2, 2.25)


def test_what_nobody_judged_says_nothing_and_the_others_are_averaged(tmp_path: Path) -> None:
    plugin = stopping(tmp_path, patience=1)
    evaluated(plugin, 0, 1.0, None, 3.0)
    evaluated(plugin, 1, None, None)
    evaluated(plugin, 2, 2.5, None)
    with pytest.raises(StopTraining, match=r"above 2\.5, that of update 2,"):
        evaluated(plugin, 3, 2.0)


def test_one_reward_alone_may_count(tmp_path: Path) -> None:
    plugin = stopping(tmp_path, patience=1, reward="brief")
    evaluated(plugin, 0, 5.0, brief=-1.0)
    evaluated(plugin, 1, 0.0, brief=1.0)
    with pytest.raises(
        StopTraining, match="score of brief has not risen above 1, that of update 1"
    ):
        evaluated(plugin, 2, 9.0, brief=0.5)


def test_the_best_checkpoint_is_noted_at_the_end_of_a_run_that_did_not_fail(tmp_path: Path) -> None:
    found = tmp_path / "early_stopping.json"
    plugin = stopping(tmp_path, patience=9)
    for updates, score in enumerate((0.0, 2.0, 1.0)):
        evaluated(plugin, updates, score)
        folder = tmp_path / f"{updates:06d}"
        folder.mkdir()
        plugin.rlframe_checkpoint_saved(CheckpointSaved(updates - 1, folder))
    plugin.rlframe_run_finished(RunFinished(ValueError("failed")))
    assert not found.exists()
    other = stopping(tmp_path, rank=1)
    other.rlframe_run_finished(RunFinished(None))
    assert not found.exists()
    plugin.rlframe_run_finished(RunFinished(None))
    assert json.loads(found.read_text()) == {
        "updates": 1,
        "score": 2.0,
        "checkpoint": str(tmp_path / "000001"),
    }
    (tmp_path / "000001").rmdir()  # as a run does that keeps the newest ones alone
    plugin.rlframe_run_finished(RunFinished(None))
    assert json.loads(found.read_text())["checkpoint"] is None


def test_a_resumed_run_waits_no_longer_than_the_first_one_would_have(tmp_path: Path) -> None:
    first = stopping(tmp_path, patience=2)
    evaluated(first, 0, 1.0)
    evaluated(first, 1, 0.5)
    second = stopping(tmp_path, patience=2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    with pytest.raises(StopTraining, match="in 2 evaluations"):
        evaluated(second, 2, 0.5)


def test_a_run_without_evaluations_is_told_that_it_will_not_be_ended(
    tmp_path: Path,
) -> None:
    started = RunStarted(tmp_path, {"evaluation": {"every": None}})
    with pytest.warns(UserWarning, match=r"evaluation\.every is not set"):
        stopping(tmp_path).rlframe_run_started(started)
    stopping(tmp_path, rank=1).rlframe_run_started(started)  # is told by rank 0


def test_every_response_is_a_line_with_its_scores(tmp_path: Path) -> None:
    plugin = RolloutLog(RolloutLog.Config(every=3), context(1))  # type: ignore[call-arg, arg-type]
    plugin.rlframe_run_started(RunStarted(tmp_path, EVALUATED))
    for update in range(6):
        plugin.rlframe_rollout_scored(RolloutScored(update, responses(0.5, None)))
    written = sorted((tmp_path / "rollouts").iterdir())
    numbers = (1, 3, 6)
    assert [path.name for path in written] == [f"update_00000{n}_rank_1.jsonl" for n in numbers]
    first, second = map(json.loads, written[0].read_text().splitlines())
    assert first == {
        "sample": 0,
        "group": 0,
        "prompt": "a?",
        "response": "b0",
        "stop_reason": "eos",
        "score": 0.5,
        "rewards": {"brief": 0.0},
    }
    assert (second["sample"], second["score"]) == (1, None)


def test_the_recipe_names_what_is_installed() -> None:
    hooks = load_recipe(RECIPE).recipe.hooks
    assert {name: spec.type for name, spec in hooks.items()} == {
        "stop": "early_stopping",
        "log": "rollout_log",
    }
