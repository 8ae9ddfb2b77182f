from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rlframe_math import MathVerify

from rlframe.api import Prompt, RewardBatch, StopReason
from rlframe.api.references import references
from rlframe.recipe import load_recipe

CONTEXT: Any = None  # nothing of it is used


def reward(**keys: Any) -> MathVerify:
    return MathVerify(MathVerify.Config.model_validate(keys), CONTEXT)


def batch(*pairs: tuple[Any, str], column: str = "answer") -> RewardBatch:
    return RewardBatch(
        prompts=[Prompt("?", (1,), {column: gold}) for gold, _ in pairs],
        response_texts=[response for _, response in pairs],
        response_ids=[(3,)] * len(pairs),
        stop_reasons=[StopReason.EOS] * len(pairs),
        group_ids=range(len(pairs)),
        update=0,
        generator=torch.Generator(),
    )


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("1/2", "so it is 0.5"),
        ("\\frac{1}{2}", "the answer is 1/2"),
        ("72", "She sold 48 and 24.\n#### 72"),
        (72, "it is $72$"),
        ("x^2 + 1", "thus \\boxed{1 + x \\cdot x}"),
        ("1,000", "1000"),
        ("\\sqrt{8}", "$2\\sqrt{2}$"),
    ],
)
def test_the_same_number_written_in_another_way_is_right(gold: Any, response: str) -> None:
    assert reward().score(batch((gold, response))) == [1.0]


def test_right_wrong_and_unreadable_have_their_scores_in_order() -> None:
    judge = reward(correct=2, wrong=0.1, unreadable=-1)
    found = judge.score(batch(("7", "8"), ("7", "no idea"), ("7", "7"), ("7", "")))
    assert found == [0.1, -1.0, 2.0, -1.0]


def test_an_answer_that_takes_too_long_to_compare_is_wrong() -> None:
    tower = "$10^{10^{10^{10}}}$"
    assert reward(timeout_seconds=1, wrong=0.1).score(batch(("3", tower))) == [0.1]


def test_a_gold_answer_that_can_not_be_read_is_no_fault_of_the_response() -> None:
    with pytest.raises(ValueError, match=r"gold answer 'what\?' in column 'solution'"):
        reward(column="solution").score(batch(("what?", "3"), column="solution"))


def in_a_thread(judge: MathVerify) -> list[Any]:
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(judge.score(batch(("3", "3"))))
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found


def test_outside_the_main_thread_a_time_limit_is_refused_and_going_without_one_works() -> None:
    (message,) = in_a_thread(reward())
    assert "timeout_seconds: null" in message
    assert in_a_thread(reward(timeout_seconds=None)) == [[1.0]]


def test_validate_knows_the_column_that_it_reads() -> None:
    (reference,) = references(MathVerify.Config(column="gold"))
    assert (reference.to, reference.name) == ("column", "gold")


def test_the_recipe_names_this_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__).parent.parent
    monkeypatch.chdir(here)
    assert load_recipe(here / "recipe.yaml").chosen["rewards", "right"].component is MathVerify
