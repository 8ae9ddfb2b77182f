from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from rlframe.engine.heldout import Answer, HeldOut
from rlframe.stages.behaviour import before_and_after, what_changed
from rlframe.types import StopReason

EOS, CUT = StopReason.EOS, StopReason.LENGTH


def held_out(
    texts: list[str], scores: list[float], reasons: list[StopReason], groups: list[int]
) -> HeldOut:
    return HeldOut(
        tuple(
            Answer(i, groups[i], f"ask{groups[i]}", texts[i], reasons[i], s, {"nice": s})
            for i, s in enumerate(scores)
        )
    )


BEFORE = held_out(
    ["dull words", "dull again", "dull thing"], [0.0, -1.0, 1.0], [CUT, EOS, EOS], [0, 0, 1]
)
AFTER = held_out(
    ["lovely words", "lovely", "lovely thing"], [1.0, 2.0, 3.0], [EOS, EOS, EOS], [0, 0, 1]
)


def test_the_sentence_says_what_moved() -> None:
    said = what_changed(BEFORE, AFTER, kl=5.25)
    assert "On 2 held-out prompts the mean score rose from 0.00 to 2.00 (nice 0.00 -> 2.00)" in said
    assert "5.2 nats" in said
    assert "100% of the responses end by themselves (before: 67%)" in said
    assert "'lovely' more often and 'dull' less often" in said
    assert "rose" not in what_changed(AFTER, BEFORE, kl=0.0)
    assert "stayed" in what_changed(AFTER, AFTER, kl=0.0)
    assert "more often" not in what_changed(AFTER, AFTER, kl=0.0)


def test_the_table_shows_each_prompt_once_and_marks_what_was_cut() -> None:
    file = io.StringIO()
    Console(file=file, width=200).print(before_and_after(BEFORE, AFTER, rows=5))
    text = file.getvalue()
    assert text.count("ask0") == 1
    assert "dull words …" in text
    assert "dull again" not in text  # the second sample of the first prompt
    assert "ask1" in text
    short = io.StringIO()
    Console(file=short, width=200).print(before_and_after(BEFORE, AFTER, rows=1))
    assert "ask1" not in short.getvalue()


def test_of_a_chat_the_table_shows_the_last_turn() -> None:
    chat = Answer(
        0, 0, "<|user|>[/INST] why?<|end|>", "so", EOS, 1.0, {"nice": 1.0}, question="[/INST] why?"
    )
    looked = HeldOut((chat,))
    file = io.StringIO()
    Console(file=file, width=200).print(before_and_after(looked, looked, rows=1))
    assert "[/INST] why?" in file.getvalue()
    assert "<|user|>" not in file.getvalue()


def unjudged(seen: HeldOut) -> HeldOut:
    return HeldOut(tuple(replace(a, score=None, rewards={"nice": None}) for a in seen.answers))


def test_what_no_reward_judged_is_called_none_and_not_nan() -> None:
    nothing = unjudged(BEFORE)
    both = what_changed(nothing, unjudged(AFTER), kl=0.0)
    assert "On 2 held-out prompts no response was judged by the rewards (nice none -> none)" in both
    later = what_changed(nothing, AFTER, kl=0.0)
    assert "the mean score went from none to 2.00 (nice none -> 2.00)" in later
    file = io.StringIO()
    Console(file=file, width=200).print(before_and_after(nothing, AFTER, rows=5))
    assert "none" in file.getvalue()
    assert "nan" not in both + later + file.getvalue()
