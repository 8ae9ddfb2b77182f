"""What one part of a recipe asks of another is there, or the recipe is refused before anything runs."""

from typing import Annotated

import pytest
from pydantic import Field

from rlframe.api import ColumnName, DataName, PluginConfig, RewardName
from rlframe.api.references import references
from rlframe.builtin.reward_model import RewardModelConfig


@pytest.fixture
def refused(mistakes, minimal):
    """The one mistake of the minimal recipe with these overrides."""

    def message(*overrides, text=minimal):
        (line,) = mistakes(text, *overrides)
        return line

    return message


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("prompts.data=revews", "prompts.data"),
        ("sft={data: revews}", "sft.data"),
        ("reward_model={data: revews}", "reward_model.data"),
        (
            "model.policy={architecture: {}, tokenizer: {data: revews, vocab_size: 300}}",
            "model.policy.tokenizer.data",
        ),
    ],
)
def test_a_data_set_that_is_not_there_is_told_with_a_guess_and_those_that_are(
    refused, override, path
):
    assert refused(override) == (
        f"override {override!r}: {path}: there is no data set 'revews'. Did you mean 'reviews'? "
        "`data:` holds reviews"
    )


def test_a_reference_is_told_at_its_line(refused, place, minimal):
    text = minimal.replace("prompts: {data: reviews", "prompts: {data: other")
    message = refused(text=text)
    assert message.startswith(
        f"{place(text, 'data: other')}: prompts.data: there is no data set 'other'"
    )


def test_without_any_data_set_nothing_is_what_there_is(refused):
    assert refused("data={}").endswith("`data:` holds nothing")


def test_a_file_that_is_not_there_is_told_with_the_directory_it_was_looked_for_in(
    refused, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    message = refused("data.other={path: rows.jsonl}")
    assert "data.other.path: there is no file 'rows.jsonl'" in message
    assert f"(from {tmp_path})" in message


def test_a_file_that_is_there_is_no_mistake(load, minimal, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    loaded = load(minimal, f"data.other={{path: {rows}}}")
    assert loaded.recipe.data["other"].path == str(rows)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.reviews={}", "here: none"),
        ("data.reviews.path=x.jsonl", "here: path, generator"),
        ("data.reviews.hub={id: x/y}", "here: hub, generator"),
    ],
)
def test_a_data_set_has_exactly_one_source(refused, override, message):
    line = refused(override)
    assert "data.reviews: give exactly one of path, hub, generator" in line
    assert line.endswith(message)


def test_a_recipe_without_any_stage_runs_nothing(mistakes, minimal):
    message = mistakes(minimal.replace("ppo: {updates: 4}\n", ""))
    assert any("give at least one of sft, reward_model, ppo" in line for line in message)


@pytest.mark.parametrize("section", ["prompts", "kl", "rewards"])
def test_ppo_is_refused_without_what_it_needs(refused, section):
    empty = "{}" if section == "rewards" else "null"
    assert f"PPO needs `{section}:`" in refused(f"{section}={empty}")


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("model.critic.initial=stage:reward_model", "model.critic.initial"),
        ("model.critic.initial=stage:nothing", "model.critic.initial"),
        ("model.reference=stage:sft", "model.reference"),
    ],
)
def test_the_result_of_a_stage_that_does_not_run_is_refused(refused, override, path):
    stage = override.partition("stage:")[2]
    line = refused(override)
    assert f"{path}: 'stage:{stage}'" in line
    assert f"`{stage}:` is not in this recipe" in line


def test_the_result_of_a_stage_that_runs_is_accepted(load, minimal):
    overrides = ["sft={data: reviews}", "model.reference=stage:sft"]
    assert load(minimal, *overrides).recipe.model.reference == "stage:sft"


@pytest.mark.parametrize("path", ["model.critic.initial", "model.reference"])
def test_ppo_can_not_start_from_its_own_result(refused, path):
    assert f"{path}: " in refused(f"{path}=stage:ppo")


@pytest.mark.parametrize("stage", ["sft", "reward_model", "nothing"])
def test_a_reward_model_starts_from_the_policy_or_from_a_model_that_exists(refused, stage):
    message = refused(
        "sft={data: reviews}", f"reward_model={{data: reviews, initial: 'stage:{stage}'}}"
    )
    assert "reward_model.initial: " in message


def test_a_reward_model_is_no_reference(refused):
    message = refused("reward_model={data: reviews}", "model.reference=stage:reward_model")
    assert "model.reference: " in message


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        (["model.critic={shared: true, initial: some/model}"], "model.critic.initial"),
        (["model.critic={head: keep}"], "model.critic.head"),
    ],
)
def test_critic_options_that_contradict_each_other_are_refused(refused, overrides, path):
    assert f": {path}: " in refused(*overrides)


def test_more_minibatches_than_responses_are_refused_with_the_sum(refused):
    message = refused(
        "rollout={prompts_per_update: 3, samples_per_prompt: 2}", "ppo={updates: 1, minibatches: 7}"
    )
    assert "ppo.minibatches: 7 minibatches cannot be made of 6 responses" in message


def test_as_many_minibatches_as_responses_are_accepted(load, minimal):
    overrides = ["rollout={prompts_per_update: 3, samples_per_prompt: 2}", "ppo.minibatches=6"]
    assert load(minimal, *overrides).recipe.ppo.minibatches == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("minimum: 2, maximum: 1", "2.0 is above maximum 1.0"),
        ("estimator: full, placement: loss", "'full'"),
    ],
)
def test_kl_options_that_contradict_each_other_are_refused(refused, options, message):
    line = refused(f"kl={{controller: {{type: fixed, coefficient: 1}}, {options}}}")
    assert ": kl: " in line
    assert message in line


# What components name


def test_a_data_set_that_a_loss_names_is_looked_up(refused):
    message = refused("losses.ptx={type: ptx, gamma: 0.5, data: revews}")
    assert "losses.ptx.data: there is no data set 'revews'. Did you mean 'reviews'?" in message


def test_the_result_of_a_stage_that_does_not_run_is_no_reward_model(refused):
    message = refused("rewards.liked={type: reward_model}")
    assert message.endswith(
        "rewards.liked.model: 'stage:reward_model' is the result of a stage that this recipe does "
        "not run"
    )


def test_the_result_of_the_last_stage_is_nothing_that_a_component_reads(refused):
    message = refused("rewards.liked={type: reward_model, model: 'stage:ppo'}")
    assert "rewards.liked.model: 'stage:ppo' is the last stage of a run" in message


def test_names_are_looked_up_inside_nested_components_and_beside_other_mistakes(mistakes, minimal):
    inner = "{type: preference_difference, against: others, reward: {type: reward_model}}"
    lines = mistakes(minimal, f"rewards.liked={inner}", "ppo.upates=3")
    assert any("rewards.liked.reward.model: 'stage:reward_model' is" in line for line in lines)
    assert any("set rollout.samples_per_prompt to 2 or more, it is 1" in line for line in lines)
    assert any("upates" in line for line in lines)


class Named(PluginConfig):
    """A name in each place where a config can have one."""

    one: DataName
    some: tuple[RewardName, ...] = ()
    perhaps: Annotated[ColumnName, Field(description="a column")] | None = None
    inside: RewardModelConfig = RewardModelConfig()
    plain: str = "data"


def test_names_are_found_wherever_a_config_has_them():
    config = Named.model_validate({"one": "a", "some": ["b", "c"], "perhaps": "d"})
    assert {(r.path, r.name, r.to) for r in references(config)} == {
        (("one",), "a", "data"),
        (("some", 0), "b", "reward"),
        (("some", 1), "c", "reward"),
        (("perhaps",), "d", "column"),
        (("inside", "model"), "stage:reward_model", "model"),
    }
