"""Time limits: what is called within them, and what is known when they are over."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlframe.engine import asking
from rlframe.engine.asking import TimeLimit, culprit
from rlframe.types import Prompt, RewardBatch, StopReason


def batch(texts: list[str], groups: list[int]) -> RewardBatch:
    return RewardBatch(
        prompts=[Prompt(f"ask {group}", (1,)) for group in groups],
        response_texts=texts,
        response_ids=[[3]] * len(texts),
        stop_reasons=[StopReason.EOS] * len(texts),
        group_ids=groups,
        update=0,
        generator=torch.Generator(),
    )


@pytest.fixture
def forever() -> Any:
    """Something to wait for that does not come before the test is over."""
    event = threading.Event()
    yield event.wait
    event.set()


def test_a_limit_is_one_allowance_for_all_calls(forever: Any) -> None:
    limit = TimeLimit(0.3, name="reward")
    assert limit.call(lambda: 1).result() == 1  # type: ignore[union-attr]
    assert limit.call(forever) is None
    assert limit.call(lambda: 1) is None  # nothing is left


@pytest.mark.parametrize("seconds", [None, 20.0, 1e300])
def test_a_call_computes_as_in_this_thread(seconds: float | None) -> None:
    def seen() -> Any:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        return torch.is_grad_enabled(), product.dtype

    limit = TimeLimit(seconds, name="reward")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert limit.call(seen).result() == (False, torch.bfloat16)  # type: ignore[union-attr]
    assert limit.call(seen).result() == (True, torch.float32)  # type: ignore[union-attr]


def test_what_a_thread_ends_with_is_not_taken_for_silence() -> None:
    answer = TimeLimit(20.0, name="reward").call(lambda: exec("raise SystemExit(0)"))
    assert answer is not None
    with pytest.raises(SystemExit):
        answer.result()


def test_a_plugin_that_ends_the_process_does_so_where_there_is_no_limit() -> None:
    with pytest.raises(SystemExit):
        TimeLimit(None, name="reward").call(lambda: exec("raise SystemExit(0)"))


def test_the_culprit_is_looked_for_by_prompts_and_then_by_responses() -> None:
    asked: list[list[str]] = []

    def ask(part: RewardBatch) -> None:
        asked.append(list(part.response_texts))
        if "bad" in part.response_texts:
            raise ValueError("bad")

    found = culprit(
        ask, batch(["a", "b", "c", "bad"], [0, 0, 1, 1]), ValueError(), TimeLimit(None, name="r")
    )
    assert asked == [["a", "b"], ["c", "bad"], ["c"], ["bad"]]
    assert "sample 3" in found
    assert "'bad'" in found


def test_a_reward_that_compares_the_samples_of_a_prompt_is_not_asked_about_one_alone_first() -> (
    None
):
    def ask(part: RewardBatch) -> None:
        if len(part) == 1:
            raise ZeroDivisionError  # the others' mean
        if "bad" in part.response_texts:
            raise ValueError

    found = culprit(
        ask, batch(["a", "b", "c", "bad"], [0, 0, 1, 1]), ValueError(), TimeLimit(None, name="r")
    )
    assert "sample 2" in found  # the first of the prompt: alone, another error is in the way


def test_the_search_ends_with_the_limit(forever: Any) -> None:
    limit, began = TimeLimit(0.3, name="reward"), time.monotonic()
    found = culprit(lambda part: forever(), batch(["a", "b"], [0, 1]), ValueError(), limit)
    assert found.startswith("The time was over before the response was found")
    assert "ask 0" in found
    assert time.monotonic() - began < 10


def test_the_search_has_an_end_where_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "SEARCH", -1.0)
    asked: list[int] = []
    limit = TimeLimit(None, name="reward")
    found = culprit(lambda part: asked.append(1), batch(["a"], [0]), ValueError(), limit)
    assert found.startswith("The time was over")
    assert not asked


def test_a_response_that_is_alone_is_not_asked_about_twice() -> None:
    """The call may take minutes, and the answer is known."""
    asked: list[str] = []

    def ask(part: RewardBatch) -> None:
        asked.extend(part.response_texts)
        raise ValueError

    culprit(ask, batch(["a", "b"], [0, 1]), ValueError(), TimeLimit(None, name="r"))
    assert asked == ["a"]


def test_without_a_limit_the_search_takes_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/plugins.md says; each question takes one by this clock."""
    asked: list[str] = []
    monkeypatch.setattr(asking, "time", SimpleNamespace(monotonic=lambda: float(len(asked))))
    responses = batch([f"{n}" for n in range(30)], list(range(30)))
    limit = TimeLimit(None, name="r")
    found = culprit(lambda part: asked.extend(part.response_texts), responses, ValueError(), limit)
    assert found.startswith("The time was over")
    assert len(asked) == 10


def test_the_interpreter_has_the_five_seconds_that_the_page_on_recipes_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text()
    assert "this happens five seconds later" in page
    assert asking.GRACE == 5


def test_where_no_part_fails_the_first_response_is_shown() -> None:
    limit = TimeLimit(None, name="reward")
    found = culprit(lambda part: None, batch(["a", "b"], [0, 1]), ValueError(), limit)
    assert found.startswith("No response fails alone; the first of 2")
