"""`rlframe validate`: everything that needs no model, for people and for programs."""

import json

import pytest

from rlframe.recipe import load_recipe


def test_a_valid_recipe_is_told_with_its_stages_and_its_digest(rlframe, recipe):
    ended = rlframe("validate", recipe)
    digest = load_recipe(recipe).digest
    assert ended == (0, f"{recipe} is valid: sft, ppo; digest {digest[:12]}\n", "")


def test_json_is_json_alone(rlframe, recipe):
    ended = rlframe("validate", recipe, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == {
        "digest": load_recipe(recipe).digest,
        "stages": ["sft", "ppo"],
        "plugins": {
            "data.reviews.generator": "rlframe/product_reviews",
            "rewards.brevity": "rlframe/length",
            "kl.controller": "rlframe/fixed",
            "advantages": "rlframe/gae",
        },
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
def test_mistakes_are_told_on_stderr_and_nothing_on_stdout(rlframe, recipe, options):
    ended = rlframe("validate", recipe, "seed=x", "ppo.updates=0", *options)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("error: override ")
    assert "seed: input should be a valid integer" in ended.err
    assert "ppo.updates: input should be greater than 0" in ended.err


def test_nothing_is_written(rlframe, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rlframe("validate", recipe)
    assert list(tmp_path.iterdir()) == [recipe]
