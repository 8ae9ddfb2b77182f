from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rlframe.engine.heldout import Answer, HeldOut
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
