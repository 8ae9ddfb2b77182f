"""The prompts of a project: mixed, cut, and the same whenever they are asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlframe.compose import Project
from rlframe.engine.streams import Shuffled
from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry

Make = Callable[..., Project]


@pytest.fixture
def project(tmp_path: Path, tiny_recipe: Callable[..., Path]) -> Make:
    """A project with the data sets `a` and `b`, of questions, and `reviews`, for the tokenizer."""

    def made(prompts: dict[str, Any], *, a: int = 40, b: int = 200, **sections: Any) -> Project:
        for name, size in {"a": a, "b": b}.items():
            rows = [{"q": f"{name} {i}: what is it?", "n": i} for i in range(size)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        data: dict[str, Any] = {
            name: {"path": str(tmp_path / f"{name}.jsonl"), "columns": {"prompt": "q"}}
            for name in "ab"
        }
        data |= {"reviews": {"generator": {"type": "product_reviews", "rows": 60}}}
        loaded = load_recipe(tiny_recipe(data=data, prompts=prompts, **sections))
        return Project(loaded, tmp_path / "run", Registry())

    return made


def test_a_mixture_has_its_proportions_in_every_update_of_an_epoch(project: Make) -> None:
    train, heldout = project({"data": {"a": 0.75, "b": 0.25}}).prompts
    stretch = Counter(prompt.text[0] for prompt in train[:100])
    assert abs(stretch["a"] - 75) <= 1
    assert {prompt.text[0] for prompt in heldout} == {"a", "b"}
    assert not {p.text for p in train} & {p.text for p in heldout}
    assert len({p.text for p in heldout}) == len(heldout)


def test_two_projects_of_a_recipe_draw_the_same_prompts_from_a_mixture(project: Make) -> None:
    def drawn(seed: int) -> list[str]:
        made = project({"data": {"a": 2, "b": 1}}, seed=seed)
        stream = Shuffled(made.prompts[0], key=(seed, "prompts"))
        later = stream.take(500, 8)  # as a run that is resumed begins
        assert [p.ids for p in stream.take(0, 508)[500:]] == [p.ids for p in later]
        return [p.text for p in later]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_prompt_is_the_same_whenever_it_is_asked_for(project: Make) -> None:
    train, _ = project({"data": "a", "max_tokens": 12, "truncate": "left"}).prompts
    assert [(p.text, p.ids) for p in train] == [
        (train[i].text, train[i].ids) for i in range(len(train))
    ]


@pytest.mark.parametrize("side", ["left", "right", "drop"])
def test_no_prompt_is_longer_than_it_may_be(project: Make, side: str) -> None:
    whole = project({"data": "b"}).prompts[0]
    limit = sorted(len(p.ids) for p in whole)[len(whole) // 2]
    made = project({"data": "b", "max_tokens": limit, "truncate": side})
    train, _ = made.prompts
    long = sum(len(p.ids) > limit for p in whole)
    assert max(len(p.ids) for p in train) <= limit
    assert len(train) == len(whole) - long * (side == "drop")
    message = "left out" if side == "drop" else f"cut on the {side}"
    assert any(
        note.startswith(f"prompts: {long} of {len(whole)} training prompts") and message in note
        for note in made.notes
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_first_words_are_cut_to_the_tokens_that_fit_and_columns_stay_whole(
    project: Make, side: str
) -> None:
    section = {"data": "reviews", "first_words": 4}
    lengths = sorted(len(p.ids) for p in project(section).prompts[0])
    limit = lengths[len(lengths) // 2] - 1
    cut, _ = project({**section, "max_tokens": limit, "truncate": side}).prompts
    assert lengths[-1] > limit >= max(len(p.ids) for p in cut)
    shorter = 0
    for prompt in cut:
        whole = " ".join(prompt.columns["text"].split()[:4])
        kept = whole.endswith if side == "left" else whole.startswith
        assert prompt.text
        assert kept(prompt.text)
        shorter += prompt.text != whole
    assert shorter


def test_a_template_is_asked_and_the_columns_stay_for_rewards(project: Make) -> None:
    train, _ = project({"data": "a", "template": "Q: {q} ({n})\nA:"}).prompts
    first = train[0]
    assert first.text == f"Q: {first.columns['q']} ({first.columns['n']})\nA:"


def test_prompts_that_a_template_makes_alike_are_not_trained_on_where_one_is_held_out(
    project: Make,
) -> None:
    with pytest.raises(RecipeError, match=r"data set 'a' leaves no training prompts"):
        _ = project({"data": "a", "template": "Say something."}).prompts


def test_first_words_of_a_small_data_set_leave_something_to_hold_out(project: Make) -> None:
    for rows in (20, 40, 60):
        reviews = {"generator": {"type": "product_reviews", "rows": rows}, "heldout": 0.2}
        made = project({"data": "reviews", "first_words": 4}, rollout={"max_new_tokens": 8})
        made.recipe.data["reviews"] = type(made.recipe.data["reviews"]).model_validate(reviews)
        train, heldout = made.prompts
        assert train
        assert heldout
        assert not {p.text for p in train} & {p.text for p in heldout}


def test_rows_of_a_rollout_are_read_when_they_are_sampled(
    project: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project({"data": "b"})
    train, _ = made.prompts
    asked: list[int] = []
    many = type(train).many

    def counted(self: Any, indices: Any) -> Any:
        asked.append(len(indices))
        return many(self, indices)

    monkeypatch.setattr(type(train), "many", counted)
    before = len(asked)
    Shuffled(train, key=(0, "prompts")).take(0, 8)
    assert sum(asked[before:]) <= 8 * 3  # through the layers, never the whole data set
