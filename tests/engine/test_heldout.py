from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from rlframe.api import HookPlugin, PluginConfig, hookimpl
from rlframe.api.component import Instance
from rlframe.api.events import HeldoutEvaluated
from rlframe.engine.heldout import Answer, HeldOut, HeldoutEvaluator
from rlframe.registry.relay import Relay
from tests.stages.test_behaviour import AFTER, BEFORE, EOS


def test_samples_keep_the_last_turn_of_a_chat_beside_what_was_rendered() -> None:
    chat = Answer(
        0, 0, "<|user|>[/INST] why?<|end|>", "so", EOS, 1.0, {"nice": 1.0}, question="[/INST] why?"
    )
    assert chat.row()["question"] == "[/INST] why?"
    assert Answer.of_row(chat.row()) == chat
    assert Answer.of_row(BEFORE.answers[0].row()) == BEFORE.answers[0]


def test_metrics_of_an_evaluation() -> None:
    assert BEFORE.metrics() == {
        "heldout/scores": 0.0,
        "heldout/nice/raw": 0.0,
        "heldout/finished_share": pytest.approx(2 / 3),
    }
    assert AFTER.answers[2].row() == {
        "sample": 2,
        "group": 1,
        "prompt": "ask1",
        "response": "lovely thing",
        "stop_reason": "eos",
        "score": 3.0,
        "rewards": {"nice": 3.0},
    }


def test_what_no_reward_judged_enters_no_mean() -> None:
    first, second, *others = AFTER.answers
    unjudged = replace(second, score=None, rewards={"nice": None})
    seen = HeldOut((first, unjudged, *others))
    without = HeldOut((first, *others))
    assert seen.mean == without.mean
    assert seen.rewards == without.rewards
    assert Answer.of_row(unjudged.row()) == unjudged
    assert math.isnan(HeldOut((unjudged,)).mean)


def test_observers_are_given_the_answers_of_all_ranks_after_they_are_kept() -> None:
    seen: list[object] = []
    nothing: Any = None

    class Observer(HookPlugin[PluginConfig]):
        @hookimpl
        def rlframe_heldout_evaluated(self, event: HeldoutEvaluated) -> None:
            seen.append(event)

    relay = Relay([Instance("o", "observer", Observer(PluginConfig(), nothing))])
    parts: dict[str, Any] = {
        "models": SimpleNamespace(gathered=nullcontext),
        "generator": SimpleNamespace(heldout=lambda updates: None),
        "scorer": nothing,
        "gather": lambda mine: [BEFORE.answers[1:], mine, BEFORE.answers[:1]],
        "directory": SimpleNamespace(samples=lambda name, rows: seen.append((name, len([*rows])))),
    }
    evaluator = HeldoutEvaluator(**parts, observers=relay, every=2)
    found = [evaluator.after(updates, of=6) for updates in (1, 2, 6)]
    assert found == [None, BEFORE, None]
    name = "update_000002"
    assert seen == [(name, 3), HeldoutEvaluated(name, 2, BEFORE.answers)]
