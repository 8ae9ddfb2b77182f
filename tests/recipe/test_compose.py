"""Recipes that extend others: what merges, what replaces, what is removed, and who wrote each value."""

import json
from pathlib import Path

import pytest

from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe
from rlframe.recipe.compose import compose
from rlframe.recipe.document import Replaced


@pytest.fixture
def composed(write):
    """Write files by name, compose the last one, and return its document without problems."""

    def made(*texts, overrides=(), **bases):
        for name, text in bases.items():
            write(text, f"{name}.yaml")
        document = compose(write(texts[0], "recipe.yaml"), overrides)
        document.check()
        return document

    return made


def test_mappings_merge_and_lists_and_scalars_replace(composed):
    base = "a: {x: 1, y: {p: 1, q: 2}}\nb: [1, 2]\nc: 1\n"
    document = composed("extends: base.yaml\na: {y: {q: 3}, z: 4}\nb: [3]\n", base=base)
    assert document.data == {"a": {"x": 1, "y": {"p": 1, "q": 3}, "z": 4}, "b": [3], "c": 1}


def test_of_several_bases_the_later_wins_and_the_file_itself_over_all(composed):
    document = composed(
        "extends: [one.yaml, two.yaml]\nc: 3\n", one="a: 1\nb: 1\nc: 1\n", two="b: 2\nc: 2\n"
    )
    assert document.data == {"a": 1, "b": 2, "c": 3}


def test_paths_are_relative_to_the_file_that_extends(tmp_path, monkeypatch, write):
    (tmp_path / "team").mkdir()
    write("a: 1\n", "team/base.yaml")
    write("extends: ./base.yaml\nb: 2\n", "team/ours.yaml")
    path = write("extends: team/ours.yaml\n")
    monkeypatch.chdir("/")
    assert compose(path).data == {"a": 1, "b": 2}


def test_a_file_may_be_extended_along_two_ways(composed):
    document = composed(
        "extends: [one.yaml, two.yaml]\n",
        root="a: 1\n",
        one="extends: root.yaml\nb: 1\n",
        two="extends: root.yaml\nc: 1\n",
    )
    assert document.data == {"a": 1, "b": 1, "c": 1}


def test_a_circle_is_an_error_that_shows_the_chain(write):
    one, two = write("extends: two.yaml\n", "one.yaml"), write("extends: one.yaml\n", "two.yaml")
    (problem,) = compose(one).problems
    assert problem.message.endswith(f"in a circle: {one} -> {two} -> {one}")
    assert problem.place == f"{two}:1:1"


def test_rewards_keep_the_order_of_the_base_and_new_ones_come_last(composed):
    document = composed(
        "extends: base.yaml\nr: {new: {w: 1}, b: {w: 2}, a: {w: 3}}\n", base="r: {a: {}, b: {}}\n"
    )
    assert list(document.data["r"]) == ["a", "b", "new"]


def test_another_type_drops_every_key_of_the_old_component(composed):
    base = "r: {a: {type: x, weight: 2, limit: 3}, b: {type: x, limit: 3}}\n"
    document = composed("extends: base.yaml\nr: {a: {type: y}, b: {type: x, k: 1}}\n", base=base)
    assert document.data["r"] == {"a": {"type": "y"}, "b": {"type": "x", "limit": 3, "k": 1}}


@pytest.mark.parametrize("turned", [False, True])
def test_overrides_may_change_a_type_and_its_keys_in_any_order(composed, turned):
    overrides = ["c.type=fixed", "c.coefficient=1", "c.inner.depth=2"]
    document = composed(
        "c: {type: adaptive, target: 6, inner: {depth: 1, width: 1}}\n",
        overrides=overrides[::-1] if turned else overrides,
    )
    assert document.data["c"] == {"type": "fixed", "coefficient": 1, "inner": {"depth": 2}}


def test_the_same_type_again_drops_nothing(composed):
    document = composed("c: {type: adaptive, target: 6}\n", overrides=["c.type=adaptive"])
    assert document.data["c"] == {"type": "adaptive", "target": 6}


def test_a_key_is_removed_by_a_file_and_by_an_override(composed):
    base = "r: {a: 1, b: 2, c: 3}\n"
    document = composed("extends: base.yaml\nr: {~a: }\n", overrides=["~r.b"], base=base)
    assert document.data == {"r": {"c": 3}}


def test_a_key_that_is_removed_and_given_is_replaced_as_a_whole(composed):
    document = composed("extends: base.yaml\n~a:\na: {y: 2}\n", base="a: {x: 1}\n")
    assert document.data == {"a": {"y": 2}}


@pytest.mark.parametrize(
    "override", ["~rewards.brevty", "~rewards.brevity.target_token", "~lossse"]
)
def test_removing_what_is_not_there_is_an_error_with_a_guess(mistakes, minimal, override):
    (line,) = mistakes(minimal + "losses: {}\n", override)
    assert line.startswith(f"override {override!r}: ")
    assert "Did you mean" in line


def test_provenance_names_the_writer_and_what_it_replaced(composed, tmp_path):
    document = composed(
        "extends: base.yaml\na: {x: 2}\n",
        base="a: {x: 1, y: 1}\n",
        overrides=["a.x=3", "a.y=${ref:a.x}"],
    )
    recipe, base = tmp_path / "recipe.yaml", tmp_path / "base.yaml"
    assert document.place(("a", "x")) == "override 'a.x=3'"
    assert document.replaced["a", "x"] == [
        Replaced(1, f"{base}:1:5"),
        Replaced(2, f"{recipe}:2:5"),
    ]
    assert document.data["a"]["y"] == 3
    assert document.written["a", "y"] == "${ref:a.x}"


def test_what_a_changed_type_replaced_is_remembered_where_it_is_given_again(composed, tmp_path):
    document = composed(
        "extends: base.yaml\nr: {type: y, weight: 2}\n", base="r: {type: x, weight: 1, k: 1}\n"
    )
    assert document.replaced["r", "weight"] == [Replaced(1, f"{tmp_path / 'base.yaml'}:1:14")]


def test_mistakes_in_several_files_are_told_together_the_recipe_first(write, minimal, registry):
    write(minimal.replace("updates: 4", "updates: x"), "base.yaml")
    path = write("extends: base.yaml\nseed: x\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["kl.controller.target=x"], registry=registry)
    places = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert places == ["seed", "ppo.updates", "kl.controller.target"]


def test_a_composed_recipe_resolves_to_one_that_stands_alone(write, minimal, registry, monkeypatch):
    monkeypatch.setenv("RLFRAME_UPDATES", "7")
    write(minimal, "base.yaml")
    text = (
        "extends: base.yaml\nppo: {updates: '${env:RLFRAME_UPDATES}', epochs: '${ref:version}'}\n"
    )
    loaded = load_recipe(write(text), registry=registry)
    alone = loaded.resolved()
    assert "extends" not in alone
    assert (alone["ppo"]["updates"], alone["ppo"]["epochs"]) == ("${env:RLFRAME_UPDATES}", 1)
    again = load_recipe(write(json.dumps(alone), "alone.yaml"), registry=registry)
    assert again.digest == loaded.digest


def test_the_example_of_the_guide_composes_as_it_says(write, registry, monkeypatch):
    root = Path(__file__).parents[2]
    guide = (root / "docs" / "recipe.md").read_text()
    text = guide.partition("```yaml\n")[2].partition("```")[0]
    command = guide.partition("rlframe train fast.yaml ")[2].partition("\n")[0]
    monkeypatch.setenv("THREADS", "2")
    write((root / "recipes" / "quickstart.yaml").read_text(), "quickstart.yaml")
    recipe = load_recipe(write(text, "fast.yaml"), command.split(), registry=registry).recipe
    assert recipe.ppo.updates == recipe.checkpoints.every == 20
    assert list(recipe.rewards) == ["satisfied", "finished", "brief"]
    assert recipe.losses == {}
    assert recipe.kl.controller.options == {"coefficient": 0.1}
    assert recipe.runtime.threads == 2
