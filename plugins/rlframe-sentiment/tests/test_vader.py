from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlframe_sentiment import Vader

from rlframe.api import Prompt, RewardBatch, StopReason
from rlframe.recipe import load_recipe

CONTEXT: Any = None  # nothing of it is used


def batch(*pairs: tuple[str, str]) -> RewardBatch:
    return RewardBatch(
        prompts=[Prompt(prompt, (1,)) for prompt, _ in pairs],
        response_texts=[response for _, response in pairs],
        response_ids=[(3,)] * len(pairs),
        stop_reasons=[StopReason.EOS] * len(pairs),
        group_ids=range(len(pairs)),
        update=0,
        generator=torch.Generator(),
    )


def scores(*pairs: tuple[str, str], **keys: Any) -> list[float]:
    return Vader(Vader.Config.model_validate(keys), CONTEXT).score(batch(*pairs))


def test_praise_is_above_nothing_and_nothing_above_blame() -> None:
    good, none, bad = scores(("", "i love it, great"), ("", "it is a lamp"), ("", "i hate it"))
    assert -1 <= bad < none == 0 < good <= 1


def test_the_score_of_one_word_by_hand() -> None:
    # "great" has valence 3.1 in VADER's lexicon: 3.1 / sqrt(3.1² + 15) = 0.6249
    assert scores(("", "great")) == [pytest.approx(3.1 / math.sqrt(3.1**2 + 15), abs=1e-4)]


def test_only_the_response_counts_unless_the_prompt_is_asked_for() -> None:
    pair = ("a great lamp", " that i bought")
    assert scores(pair) == [0.0]
    assert scores(pair, of="prompt_and_response")[0] > 0.5


def test_prompt_and_response_meet_without_a_space() -> None:
    assert scores(("gr", "eat"), of="prompt_and_response") == scores(("", "great"))


def test_strange_texts_have_a_finite_score() -> None:
    texts = ["", " ", "\x00", "😀", "!" * 1000, "good " * 5000]
    assert all(-1 <= s <= 1 for s in scores(*[("", text) for text in texts]))


def test_no_responses_have_no_scores() -> None:
    assert scores() == []


def test_an_unknown_text_to_judge_is_refused() -> None:
    with pytest.raises(ValidationError):
        Vader.Config.model_validate({"of": "prompt"})


def test_the_recipe_names_this_reward() -> None:
    loaded = load_recipe(Path(__file__).parent.parent / "recipe.yaml")
    assert loaded.chosen["rewards", "kind"].component is Vader
