"""`rlframe validate`: everything that needs no model, for people and for programs."""

import json

import pytest

from rlframe.recipe import load_recipe


def test_a_valid_recipe_is_told_with_its_stages_and_its_digest(rlframe, recipe):
    ended = rlframe("validate", recipe)
    digest = load_recipe(recipe).digest
    valid = f"{recipe} is valid: sft, ppo; digest {digest[:12]}\n"
    assert ended == (0, valid + "not looked at: data.reviews (a generator)\n", "")


def test_json_is_json_alone(rlframe, recipe):
    ended = rlframe("validate", recipe, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == {
        "valid": True,
        "digest": load_recipe(recipe).digest,
        "stages": ["sft", "ppo"],
        "plugins": {
            "data.reviews.generator": "rlframe/product_reviews",
            "rollout.sampler": "rlframe/builtin",
            "rewards.brevity": "rlframe/length",
            "kl.controller": "rlframe/fixed",
            "algorithm.advantages": "rlframe/gae",
            "algorithm.policy_loss": "rlframe/clip",
            "algorithm.value_loss": "rlframe/clipped",
        },
        "not_looked_at": ["data.reviews (a generator)"],
    }


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_option_may_stand_before_or_after_overrides(rlframe, recipe, place):
    override = "sft=null"
    arguments = ["--json", override] if place == "before" else [override, "--json"]
    assert json.loads(rlframe("validate", recipe, *arguments).out)["stages"] == ["ppo"]


def test_overrides_are_part_of_what_is_validated(rlframe, recipe):
    plain, other = (
        json.loads(rlframe("validate", recipe, *overrides, "--json").out)["digest"]
        for overrides in ([], ["seed=1", "ppo.updates=2"])
    )
    assert other == load_recipe(recipe, ["seed=1", "ppo.updates=2"]).digest
    assert other != plain


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_mistakes_are_told_on_stderr_and_stdout_has_json_or_nothing(rlframe, recipe, options):
    ended = rlframe("validate", recipe, "seed=x", "ppo.updates=0", *options)
    assert ended.code == 3
    assert bool(ended.out) == bool(options)
    assert ended.err.startswith("error: override ")
    assert "seed: input should be a valid integer" in ended.err
    assert "ppo.updates: input should be greater than 0" in ended.err


def test_json_has_an_object_for_each_mistake(rlframe, recipe):
    recipe.write_text(recipe.read_text() + "colour: red\nhooks: {a: {type: nothing}}\n")
    ended = rlframe("validate", recipe, "seed=x", "--json")
    assert ended.code == 3
    found = json.loads(ended.out)
    assert found["valid"] is False
    colour, hook, seed = found["problems"]
    lines = len(recipe.read_text().splitlines())
    place = {
        "file": str(recipe),
        "line": lines - 1,
        "column": 1,
        "place": f"{recipe}:{lines - 1}:1",
    }
    assert {key: colour[key] for key in place} == place
    assert (colour["path"], colour["kind"]) == ("colour", "recipe")
    assert colour["message"].startswith("unknown key 'colour'")
    assert (hook["path"], hook["kind"], hook["line"]) == ("hooks.a.type", "plugin", lines)
    assert seed["place"] == "override 'seed=x'"
    assert (seed["file"], seed["line"], seed["column"]) == (None, None, None)
    for problem in found["problems"]:
        assert f"{problem['place']}: {problem['path']}: {problem['message']}" in ended.err


@pytest.mark.parametrize(
    ("text", "place", "code"),
    [
        (None, (None, None, None), 3),
        ("version: 1\na: [", ("recipe.yaml", 2, 5), 3),
        ("- a", ("recipe.yaml", 1, 1), 3),
    ],
)
def test_json_of_a_file_that_is_no_recipe(rlframe, tmp_path, monkeypatch, text, place, code):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    ended = rlframe("validate", "recipe.yaml", "--json")
    assert ended.code == code
    (problem,) = json.loads(ended.out)["problems"]
    assert (problem["file"], problem["line"], problem["column"]) == place
    assert f"error: {problem['message']}" in ended.err


def test_nothing_is_written(rlframe, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rlframe("validate", recipe)
    assert list(tmp_path.iterdir()) == [recipe]
