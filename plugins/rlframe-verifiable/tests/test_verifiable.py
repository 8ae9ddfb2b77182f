from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import reasoning_gym  # type: ignore[import-untyped]
import torch
from pydantic import ValidationError
from reasoning_gym.factory import DATASETS  # type: ignore[import-untyped]
from rlframe_verifiable import COLUMN, HELDOUT_SEED, Scorer, Tasks, _question

from rlframe.api import Prompt, RewardBatch, Row, StopReason
from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe

CONTEXT: Any = None  # nothing of it is used
SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}


def tasks(task: str = "chain_sum", **keys: Any) -> Any:
    return Tasks.Config.model_validate({"task": task, "rows": 50, "heldout_rows": 20, **keys})


def scores(rows: list[Row], responses: list[str], **keys: Any) -> list[float]:
    batch = RewardBatch(
        prompts=[Prompt(row["prompt"], (1,), row) for row in rows],
        response_texts=responses,
        response_ids=[(3,)] * len(rows),
        stop_reasons=[StopReason.EOS] * len(rows),
        group_ids=range(len(rows)),
        update=0,
        generator=torch.Generator(),
    )
    return Scorer(Scorer.Config.model_validate(keys), CONTEXT).score(batch)


def test_equal_configs_make_equal_rows_and_another_seed_makes_others() -> None:
    assert Tasks.rows(tasks()) == Tasks.rows(tasks())
    assert Tasks.rows(tasks()) != Tasks.rows(tasks(seed=500))


def test_item_i_of_a_seed_is_item_0_of_a_later_seed_which_is_why_seeds_lie_far_apart() -> None:
    assert Tasks.rows(tasks(seed=7))[0]["prompt"] == Tasks.rows(tasks())[7]["prompt"]


@pytest.mark.parametrize("seed", [0, 3, HELDOUT_SEED - 50])
def test_no_seed_of_a_held_out_row_is_one_that_any_training_row_may_have(seed: int) -> None:
    config = tasks(seed=seed)
    trained = {config.seed + i for i in range(config.rows)}
    held = {HELDOUT_SEED + config.seed + i for i in range(config.heldout_rows)}
    assert max(trained) < HELDOUT_SEED <= min(held)
    first = Tasks.heldout_rows(config)[0]
    assert first["prompt"] not in {row["prompt"] for row in Tasks.rows(config)}


def test_seeds_that_would_reach_the_held_out_ones_are_refused() -> None:
    with pytest.raises(ValidationError, match="seed \\+ rows must not exceed"):
        tasks(seed=HELDOUT_SEED - 49)


@pytest.mark.parametrize("config", [SUMS, {**SUMS, "max_digits": 1, "min_digits": 1}])
def test_no_question_is_both_trained_on_and_held_out(config: dict[str, int]) -> None:
    """By way of rlframe's own split: 200 sums of one digit repeat every question there is."""
    from rlframe.data.split import split_apart

    made = tasks(rows=400, heldout_rows=40, config=config)
    split = split_apart(Tasks.rows(made), Tasks.heldout_rows(made))
    assert len(split.heldout) == 40
    assert len(split.train) > 100
    assert not {r["prompt"] for r in split.train} & {r["prompt"] for r in split.heldout}


@pytest.mark.parametrize(
    "task", ["chain_sum", "prime_factorization", "spell_backward", "power_function"]
)
def test_the_right_answer_scores_1_and_garbage_far_less(task: str) -> None:
    rows = Tasks.rows(tasks(task, rows=5))
    assert scores(rows, [f" {row['response']}\n" for row in rows]) == [1.0] * 5
    for garbage in ("zzz", "", "{", "1e999", "\x00"):
        assert max(scores(rows, [garbage] * 5)) <= 0.2


def test_an_answer_that_the_scorer_can_not_read_is_wrong() -> None:
    rows = Tasks.rows(tasks("prime_factorization", rows=1))
    assert scores(rows, ["zzz"]) == [0.0]


def test_a_scorer_that_refuses_the_right_answer_too_stops_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = Tasks.rows(tasks("prime_factorization", rows=1))

    def broken(*given: Any) -> float:
        raise ValueError("this scorer is broken")

    monkeypatch.setattr(DATASETS["prime_factorization"][0], "score_answer", broken)
    with pytest.raises(ValueError, match="this scorer is broken"):
        scores(rows, ["2 x 3"])


@pytest.mark.parametrize("task", ["chain_sum", "rubiks_cube", "graph_color", "number_sequence"])
def test_rows_are_plain_and_the_scorer_has_the_question_with_all_its_metadata(task: str) -> None:
    config = tasks(task, rows=3, seed=5)
    rows = Tasks.rows(config)
    assert json.loads(json.dumps(rows)) == rows
    whole = reasoning_gym.create_dataset(task, size=3, seed=5)
    for index in (2, 0, 1):
        judged = _question(**rows[index][COLUMN])[1]
        assert judged == whole[index]
        assert judged["question"] == rows[index]["prompt"]


def test_a_task_without_one_right_answer_gives_prompts_and_scores_alone() -> None:
    rows = Tasks.rows(tasks("graph_color", rows=2))
    assert all("response" not in row for row in rows)
    assert scores(rows, ["zzz", "[]"]) == pytest.approx([0, 0], abs=0.05)


def test_with_a_tag_only_what_stands_in_it_is_judged() -> None:
    (row,) = Tasks.rows(tasks(rows=1))
    right = f"let me think <answer>{row['response']}</answer>"
    assert scores([row, row], [right, row["response"]], answer_tag="answer") == [1.0, 0.0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "chain_sun"}, "Did you mean 'chain_sum'"),
        ({"config": {"max_digit": 3}}, "Did you mean 'max_digits'"),
        ({"config": {"min_terms": 0}}, "min_terms must be positive"),
        ({"config": {"seed": 1}}, "seed and size are set by"),
        ({"rows": 0}, "greater than 0"),
    ],
)
def test_a_config_that_makes_no_data_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tasks(**keys)


def test_prompts_of_another_source_are_refused_before_anything_trains() -> None:
    context: Any = SimpleNamespace(columns=frozenset({"prompt"}))
    with pytest.raises(RecipeError, match=r"generator: \{type: reasoning_gym"):
        Scorer.check(Scorer.Config(), context)


def test_the_recipe_names_generator_and_reward() -> None:
    chosen = load_recipe(Path(__file__).parent.parent / "recipe.yaml").chosen
    assert chosen["data", "sums", "generator"].component is Tasks
    assert chosen["rewards", "right"].component is Scorer
