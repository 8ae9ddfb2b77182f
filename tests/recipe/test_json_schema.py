"""The JSON Schema says what the loader says, in the words of an editor."""

import importlib
from pathlib import Path

import pytest

from rlframe.recipe import schema
from rlframe.recipe.json_schema import recipe_schema
from rlframe.recipe.yaml12 import read_file
from rlframe.registry.discovery import Registry
from tests.cli.broken import distribution
from tests.recipe.corpus import FOLDER

jsonschema = pytest.importorskip("jsonschema")
RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator():
    found, broken = recipe_schema(Registry())
    assert broken == []
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@pytest.fixture
def found(validator, write):
    """(path, message) of what an editor would underline in a recipe's text."""

    def errors(text):
        data = read_file(write(text)).data
        return [(".".join(map(str, e.path)), e.message) for e in validator.iter_errors(data)]

    return errors


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_valid(validator, path):
    assert list(validator.iter_errors(read_file(path).data)) == []


@pytest.mark.parametrize(
    ("old", "new", "path", "expected"),
    [
        ("updates: 4", "upates: 4", "ppo", "'upates' was unexpected"),
        ("updates: 4", "updates: x", "ppo.updates", "'x' is not of type 'integer'"),
        ("updates: 4", "updates: 0", "ppo.updates", "0 is less than or equal to the minimum of 0"),
        ("type: length", "type: lenght", "rewards.brevity.type", "'lenght' is not one of ['"),
        ("target_tokens", "target_token", "rewards.brevity", "'target_token' was unexpected"),
        (", target_tokens: 20", "", "rewards.brevity", "'target_tokens' is a required property"),
        ("target: 6.0", "target: 6.0, horizn: 1", "kl.controller", "'horizn' was unexpected"),
        ("version: 1", "version: 2", "version", "1 was expected"),
        ("policy: some/model", "policy: {tokenizer: x}", "model.policy", "'architecture' is a req"),
    ],
)
def test_a_typo_is_underlined_where_it_stands(found, minimal, old, new, path, expected):
    errors = found(minimal.replace(old, new))
    assert any(where == path and expected in message for where, message in errors), errors


@pytest.mark.parametrize(
    "text",
    [
        "extends: base.yaml\n",
        "extends: [a.yaml, b.yaml]\nppo: {updates: 3}\nkl: {controller: {target: 3}}\n",
        "extends: a.yaml\n~losses:\nrewards: {~polite: , brevity: {weight: 2}}\n",
        "extends: a.yaml\nppo: {updates: '${env:N}'}\nkl: '${ref:x}'\n"
        "algorithm: {whiten_rewards: '${ref:x}'}\n",
        "extends: a.yaml\nkl: null\nalgorithm: {advantages: {lam: 0.9}}\n",
    ],
)
def test_a_recipe_that_extends_another_may_be_a_part_of_one(found, text):
    assert found(text) == []


def test_a_typo_in_a_part_is_underlined_too(found):
    errors = found("extends: a.yaml\nppo: {upates: 3}\nrewards: {a: {type: length, wieght: 1}}\n")
    assert sorted(path for path, _ in errors) == ["ppo", "rewards.a"]


def test_every_typo_of_the_corpus_is_underlined(validator):
    # Without a `type` of its own a part of a recipe cannot tell which keys its component has.
    typeless = {f"typo_in_{part}" for part in ("an_override", "controller", "reward", "advantages")}
    for path in sorted(FOLDER.glob("typo_in_*.yaml")):
        if path.stem not in typeless:
            assert list(validator.iter_errors(read_file(path).data)), path.name


def test_every_key_has_its_description_and_every_component_its_words():
    found, _ = recipe_schema(Registry())
    definitions = found["$defs"]
    assert definitions["Algorithm"]["properties"]["whiten_rewards"]["description"] == (
        "scale token rewards to unit variance"
    )
    length = definitions["RewardEntry.rlframe.length"]
    assert length["description"].startswith("0 at the target length")
    for name in schema.Recipe.model_fields:
        assert name in definitions["Recipe"]["properties"]


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    importlib.invalidate_caches()


def test_an_installed_plugin_is_in_it(site):
    distribution(site, "acme-schema", offers={"limited": "Reward"})
    found, broken = recipe_schema(Registry())
    assert broken == []
    assert "limit" in found["$defs"]["RewardEntry.acme-schema.limited"]["properties"]
    names = found["$defs"]["RewardEntry"]["properties"]["type"]["else"]["enum"]
    assert {"limited", "acme-schema/limited"} <= set(names)


def test_a_broken_plugin_is_told_and_its_keys_are_left_open(site):
    distribution(site, "brk-schema", offers={"safe": "Reward"}, module="raise RuntimeError('no')\n")
    found, broken = recipe_schema(Registry())
    assert any("brk-schema" in message for message in broken)
    validator = jsonschema.Draft202012Validator(found)
    entry = {"extends": "a.yaml", "rewards": {"a": {"type": "safe", "anything": 1}}}
    assert list(validator.iter_errors(entry)) == []
