"""`rlframe show`: a recipe put together, for people and programs, with the writer of each value."""

import json

import pytest
from ruamel.yaml import YAML

from rlframe.recipe import load_recipe


@pytest.fixture
def child(recipe, tmp_path):
    """A recipe that extends the tiny one."""
    path = tmp_path / "child.yaml"
    path.write_text(
        "extends: tiny.yaml\nsft: null\nppo: {updates: 3, epochs: '${ref:ppo.updates}'}\n"
    )
    return path


def test_it_is_the_recipe_after_extends_overrides_and_interpolation(rlframe, child):
    ended = rlframe("show", child, "ppo.updates=4")
    assert (ended.code, ended.err) == (0, "")
    shown = YAML(typ="safe").load(ended.out)
    assert shown["ppo"] == {"updates": 4, "epochs": 4}
    assert "extends" not in shown
    assert "max_grad_norm" not in shown["ppo"]
    assert "algorithm" not in shown


def test_json_is_json_alone(rlframe, child):
    shown = json.loads(rlframe("show", child, "--json").out)
    assert shown["rewards"] == {"brevity": {"type": "length", "target_tokens": 4}}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_resolved_has_every_default_and_loads_to_the_same_digest(rlframe, child, tmp_path, options):
    ended = rlframe("show", child, "seed=7", "--resolved", *options)
    again = tmp_path / "again.yaml"
    again.write_text(ended.out)  # JSON is YAML
    assert load_recipe(again).digest == load_recipe(child, ["seed=7"]).digest
    assert load_recipe(again).recipe.ppo.max_grad_norm == 1.0


def test_provenance_has_a_line_a_value_with_the_writer_and_what_it_replaced(rlframe, child, recipe):
    ended = rlframe("show", child, "ppo.updates=4", "--provenance")
    message = ended.out.replace(str(child), "C").replace(str(recipe), "R").splitlines()
    assert "ppo.epochs: 4  # C:3:19, from ${ref:ppo.updates}, replaced 1 of R:21:19" in message
    assert (
        "ppo.updates: 4  # override 'ppo.updates=4', replaced 3 of C:3:7, replaced 1 of R:21:7"
        in message
    )
    old = '{"data": "reviews", "epochs": 0.1, "max_tokens": 64}'
    assert f"sft: null  # C:2:1, replaced {old} of R:14:1" in message
    assert [line for line in message if line.startswith("rewards.brevity.type")] == [
        'rewards.brevity.type: "length"  # R:18:13'
    ]


def test_provenance_of_the_resolved_recipe_says_what_is_a_default(rlframe, child):
    rows = json.loads(rlframe("show", child, "--resolved", "--provenance", "--json").out)
    by_path = {row["path"]: row for row in rows}
    assert by_path["algorithm.policy_loss.clip"] == {
        "path": "algorithm.policy_loss.clip",
        "value": 0.2,
        "place": "default",
        "replaced": [],
    }
    assert by_path["ppo.updates"]["place"] == f"{child}:2:7".replace(":2:", ":3:")
    assert by_path["ppo.epochs"]["written"] == "${ref:ppo.updates}"


def test_a_recipe_that_is_not_valid_can_be_looked_at_but_not_resolved(rlframe, child):
    assert rlframe("show", child, "ppo.upates=3").code == 0
    assert rlframe("show", child, "ppo.upates=3", "--resolved").code == 3


def test_what_can_not_be_put_together_is_an_error(rlframe, child):
    ended = rlframe("show", child, "seed=${env:RLFRAME_NOT_SET}")
    assert (ended.code, ended.out) == (3, "")
    assert "'RLFRAME_NOT_SET' is not set" in ended.err
