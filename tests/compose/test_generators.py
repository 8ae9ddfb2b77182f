"""Data that a component makes: which rows train, which are kept, and which plugin raised."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import PositiveInt

from rlframe.api import DataGenerator, PluginConfig, Row
from rlframe.compose import Project
from rlframe.errors import PluginError, RecipeError
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry


class CountingConfig(PluginConfig):
    rows: PositiveInt
    kept: tuple[int, ...] = ()


class Counting(DataGenerator[CountingConfig]):
    """A row a number; some of them are held out."""

    @classmethod
    def rows(cls, config: CountingConfig) -> Sequence[Row]:
        if config.rows == 13:
            raise OSError("the generator is out of paper")
        return [{"question": f"number {n}", "n": n} for n in range(config.rows)]

    @classmethod
    def heldout_rows(cls, config: CountingConfig) -> Sequence[Row]:
        return [{"question": f"number {n}", "n": n} for n in config.kept]


@pytest.fixture
def project(tmp_path: Path, tiny_recipe: Callable[..., Path]) -> Callable[..., Project]:
    """A project whose one data set is made by a generator with these keys."""

    def made(generator: dict[str, Any], **dataset: Any) -> Project:
        registry = Registry()
        registry.add("data_generators", "counting", Counting)
        spec = {"type": "counting", "rows": 10, **generator}
        columns = {"prompt": "question"}
        recipe = tiny_recipe(data={"reviews": {"generator": spec, "columns": columns, **dataset}})
        loaded = load_recipe(recipe, registry=registry)
        return Project(loaded, tmp_path / "run", registry)

    return made


def numbers(rows: Sequence[Row]) -> list[int]:
    return [row["n"] for row in rows]


def test_without_held_out_rows_of_its_own_a_generator_is_split_as_a_file_is(
    project: Callable[..., Project],
) -> None:
    split = project({"rows": 200}, heldout=0.3).split("reviews")
    assert sorted(numbers(split.train) + numbers(split.heldout)) == list(range(200))
    assert 30 < len(split.heldout) < 90


def test_the_held_out_rows_of_a_generator_are_the_split_and_train_nothing(
    project: Callable[..., Project],
) -> None:
    split = project({"kept": [3, 50]}).split("reviews")
    assert numbers(split.heldout) == [3, 50]
    assert numbers(split.train) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_columns_get_their_roles_on_both_sides(project: Callable[..., Project]) -> None:
    split = project({"kept": [50]}).split("reviews")
    assert split.train[0]["prompt"] == "number 0"
    assert split.heldout[0]["prompt"] == "number 50"


def test_a_limit_cuts_the_rows_to_train_on(project: Callable[..., Project]) -> None:
    split = project({"kept": [50]}, limit=4).split("reviews")
    assert numbers(split.train) == [0, 1, 2, 3]
    assert numbers(split.heldout) == [50]


def test_a_share_that_nothing_would_read_is_refused(project: Callable[..., Project]) -> None:
    with pytest.raises(
        RecipeError, match=r"data\.reviews: heldout: the generator brings"
    ) as caught:
        project({"kept": [3]}, heldout=0.3).split("reviews")
    assert "leave it out" in str(caught.value)


def test_a_resolved_recipe_makes_the_same_split(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    first = project({"kept": [3, 50]})
    path = tmp_path / "resolved.yaml"
    path.write_text(json.dumps(first.loaded.resolved()))  # JSON is YAML
    again = load_recipe(path, registry=first._registry)
    assert again.digest == first.loaded.digest
    second = Project(again, tmp_path / "again", first._registry)
    for part in ("train", "heldout"):
        rows, again_rows = (getattr(p.split("reviews"), part) for p in (first, second))
        assert list(rows) == list(again_rows)


def test_a_generator_that_raises_is_named_with_its_distribution(
    project: Callable[..., Project],
) -> None:
    with pytest.raises(
        RecipeError,
        match=r"^data\.reviews: data generator counting \(local 0\) raised OSError in `rows`",
    ):
        project({"rows": 13}).split("reviews")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([("a", 1)], r"returned \('a', 1\) as row 1 of `rows`; a row is a mapping"),
        ((row for row in ({"question": "x"},)), "An iterator can be read only once"),
        ({"question": ["x"]}, "A mapping of columns must be turned into rows"),
        (None, "Is a `return` missing"),
        ([{1: "x"}], "with a column 1; the name of a column is text"),
    ],
    ids=["tuples", "iterator", "columns", "none", "number"],
)
def test_what_is_no_list_of_rows_is_refused_as_the_kit_does(
    project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, answer: Any, why: str
) -> None:
    monkeypatch.setattr(Counting, "rows", classmethod(lambda cls, config: answer))
    with pytest.raises(RecipeError, match=rf"^data\.reviews: data generator counting .*{why}"):
        project({}).split("reviews")


def test_the_keys_of_a_generator_are_checked_with_the_recipe(
    project: Callable[..., Project],
) -> None:
    with pytest.raises(RecipeError, match=r"data\.reviews\.generator\.kep.*Did you mean 'kept'\?"):
        project({"kep": [3]})


def test_an_unknown_generator_is_answered_with_a_guess(tiny_recipe: Callable[..., Path]) -> None:
    spec = {"generator": {"type": "product_review", "rows": 9}}
    with pytest.raises(PluginError, match=r"data generator .*Did you mean 'product_reviews'\?"):
        load_recipe(tiny_recipe(data={"reviews": spec}))
