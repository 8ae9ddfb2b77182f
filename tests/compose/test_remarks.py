"""What is said before the first stage, and what is not worth saying."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlframe.compose.project import Project
from rlframe.compose.remarks import remarks
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from tests.conftest import TINY


@pytest.fixture
def said(tmp_path: Path, tiny_recipe: Callable[..., Path]) -> Callable[..., list[str]]:
    """The remarks on the tiny recipe with other sections."""

    def message(**sections: Any) -> list[str]:
        registry = Registry()
        loaded = load_recipe(tiny_recipe(**sections), registry=registry)
        return list(remarks(Project(loaded, tmp_path / "run", registry)))

    return message


def model(**keys: Any) -> dict[str, Any]:
    policy = TINY["model"]["policy"]
    return {"policy": {**policy, "architecture": {**policy["architecture"], **keys}}}


def test_of_an_ordinary_run_nothing_is_said(said: Callable[..., list[str]]) -> None:
    assert said() == []


def test_fewer_held_out_prompts_than_are_asked_for_are_counted(
    said: Callable[..., list[str]],
) -> None:
    first, *_ = said(evaluation={"prompts": 10_000})
    assert first.startswith("evaluation.prompts is 10000, but ")
    assert "data.reviews.heldout" in first


def test_held_out_prompts_that_repeat_are_counted_and_shown(
    said: Callable[..., list[str]],
) -> None:
    (only,) = said(prompts={"data": "reviews", "first_words": 2}, evaluation={"prompts": 12})
    assert "held-out prompts repeat the text of another" in only


def test_dropout_acts_in_the_supervised_stages_alone(said: Callable[..., list[str]]) -> None:
    (only,) = said(model=model(attention_dropout=0.25), sft={"data": "reviews"})
    assert only.startswith("the policy's dropout (attention_dropout 0.25) acts in sft alone")


def test_the_loss_of_a_router_is_part_of_no_stage(said: Callable[..., list[str]]) -> None:
    (only,) = said(model=model(model_type="mixtral"))
    assert "a mixture of experts" in only
    assert "router_aux_loss_coef 0.001" in only
