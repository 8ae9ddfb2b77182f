"""`rlframe train`: what is wrong with a recipe, its data or its models is told before training."""

import importlib
import json

import pytest
import torch

from tests.cli.broken import distribution


@pytest.fixture(scope="module")
def things(tmp_path_factory, tokenizer, language_model):
    """Files and models that something is wrong with, by name."""
    from transformers import LlamaForSequenceClassification

    root = tmp_path_factory.mktemp("things")
    (root / "empty.jsonl").write_text("\n\n")
    (root / "broken.jsonl").write_text('{"text": "one two three four"}\n{"text": \n')
    (root / "chats.jsonl").write_text('{"messages": [{"role": "user"}]}\n' * 40)
    (root / "one.jsonl").write_text('{"text": "one two three four"}\n')

    tokenizer.save_pretrained(root / "pad_is_eos")
    config = root / "pad_is_eos" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "<eos>"}))

    for name, shape in (
        ("other_vocabulary", {"num_labels": 1, "vocab_size": 280}),
        ("two_labels", {"num_labels": 2}),
    ):
        shaped = language_model(**shape).config
        LlamaForSequenceClassification(shaped).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture
def refused(rlframe, recipe, tmp_path, things):
    """Train the tiny recipe with overrides, {things} filled in; nothing may have been trained."""

    def train(*overrides):
        output = tmp_path / "run"
        filled = [override.replace("{things}", str(things)) for override in overrides]
        ended = rlframe("train", recipe, *filled, "--output", output)
        assert ended.code != 0
        assert ended.err.startswith("error: ")
        for stage in ("sft", "reward_model", "ppo"):
            assert not (output / stage).exists(), f"{stage} was trained before this was told"
        return ended.code, ended.err

    return train


BAD_INPUT = {
    "unknown key": (3, "ppo.upates=3", "ppo.upates: unknown key 'upates'. Did you mean 'updates'?"),
    "wrong type": (3, "ppo.updates=many", "ppo.updates: input should be a valid integer"),
    "missing file": (
        3,
        "data.reviews={path: '{things}/nowhere.jsonl'}",
        "data.reviews.path: there is no file",
    ),
    "empty data set": (
        3,
        "data.reviews={path: '{things}/empty.jsonl'}",
        "data.reviews: the data set is empty",
    ),
    "data that is not JSON": (
        3,
        "data.reviews={path: '{things}/broken.jsonl'}",
        "broken.jsonl:2: not valid JSON",
    ),
    "nothing held out": (3, "data.reviews.heldout=0", "has no rows held out to measure it"),
    "no such column": (3, "prompts={data: reviews}", "prompts: no text in column 'prompt'"),
    "prompt longer than the context": (
        3,
        "rollout.max_new_tokens=60",
        "prompts are longer than the context allows: the model reads 64 tokens",
    ),
    "pad equal to eos": (
        3,
        "model.policy.tokenizer='{things}/pad_is_eos'",
        "has a pad equal to eos ('<eos>')",
    ),
    "vocabulary of the reward model": (
        3,
        "rewards.judge={type: reward_model, model: '{things}/other_vocabulary'}",
        "rewards.judge: reward model '{things}/other_vocabulary' has another vocabulary than the",
    ),
    "vocabulary of the reference": (
        3,
        "model.reference='{things}/other_vocabulary'",
        "'{things}/other_vocabulary' has a vocabulary of 280 tokens",
    ),
    "model that is not there": (
        3,
        "rewards.judge={type: reward_model, model: '{things}/nowhere'}",
        "rewards.judge: reward model '{things}/nowhere' can not be opened",
    ),
    "unknown architecture key": (
        3,
        "model.policy.architecture.hiden_size=16",
        "model.policy.architecture: a llama config has no hiden_size",
    ),
    "architecture that fits no model": (
        3,
        "model.policy.architecture.num_attention_heads=3",
        "model.policy.architecture: ",
    ),
    "samples to compare": (
        3,
        "rewards.better={type: preference_difference, against: others, "
        "reward: {type: length, target_tokens: 4}}",
        "rewards.better: against 'others' compares the samples of one prompt",
    ),
    "column to compare with": (
        3,
        "rewards.better={type: preference_difference, against: column, column: human, "
        "reward: {type: length, target_tokens: 4}}",
        "rewards.better: not every row of the prompts' data has a column 'human'",
    ),
    "missing plugin": (
        4,
        "rewards.polite={type: acme/polite}",
        "rewards.polite.type: there is no reward called 'acme/polite'",
    ),
}


@pytest.mark.parametrize(("code", "override", "told"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_told_before_anything_trains(refused, things, code, override, told):
    found, error = refused(override)
    assert told.replace("{things}", str(things)) in error
    assert found == code


TAKES_MORE_THAN_A_LOOK = {
    "data of a loss": (
        "losses.ptx: there is no data set 'revews'",
        ["losses.ptx={type: ptx, gamma: 0.1, data: revews}"],
    ),
    "data of a loss without prompts": (
        "losses.demos: ",
        ["losses.demos={type: sft, data: reviews}"],
    ),
    "start of the reward model": (
        "reward_model.initial: ",
        ["reward_model={data: reviews, initial: '{things}/nowhere'}"],
    ),
    "reward model with two labels": (
        "rewards.judge: ",
        [
            "model.policy.tokenizer='{things}/two_labels'",
            "rewards.judge={type: reward_model, model: '{things}/two_labels'}",
        ],
    ),
    "reward model that is the fine-tuned policy": (
        "rewards.judge: ",
        ["rewards.judge={type: reward_model, model: 'stage:sft'}"],
    ),
    "chats that are none": (
        "messages must be a list of objects",
        ["data.reviews={path: '{things}/chats.jsonl'}"],
    ),
}


@pytest.mark.parametrize(
    ("told", "overrides"),
    [
        pytest.param(told, overrides, id=name)
        for name, (told, overrides) in TAKES_MORE_THAN_A_LOOK.items()
    ],
)
def test_bad_input_that_takes_more_than_a_look_is_told_before_anything_trains(
    refused, told, overrides
):
    code, error = refused(*overrides)
    assert told in error
    assert code == 3


def test_an_unknown_model_type_is_told_in_few_words_with_a_guess(refused):
    code, error = refused("model.policy.architecture.model_type=lama")
    assert code == 3
    assert "Did you mean 'llama'?" in error
    assert len(error) < 500


def test_a_plugin_that_can_not_be_imported_is_told_before_anything_trains(
    refused, tmp_path, monkeypatch
):
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    module = "import detoxify_is_missing\n"
    file = distribution(site, "brk", offers={"safety": "Reward"}, module=module)
    importlib.invalidate_caches()
    code, error = refused("rewards.safety={type: safety}")
    assert code == 4
    assert "rewards.safety.type: reward safety (brk 1.0) could not be imported" in error
    assert f"No module named 'detoxify_is_missing' [{file}:1]" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_the_device_ends_with_5(refused):
    code, error = refused("runtime.device=cuda")
    assert code == 5
    assert "torch sees no GPU" in error


def test_a_directory_that_holds_something_ends_with_5_and_is_left_as_it_is(
    rlframe, recipe, tmp_path
):
    output = tmp_path / "run"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    ended = rlframe("train", recipe, "--output", output)
    assert ended.code == 5
    assert f"{output} is not empty" in ended.err
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def test_an_output_that_is_a_file_ends_with_5(rlframe, recipe, tmp_path):
    output = tmp_path / "run"
    output.write_text("mine")
    ended = rlframe("train", recipe, "--output", output)
    assert ended.code == 5
    assert output.read_text() == "mine"


def test_a_typo_writes_no_run_directory_at_all(refused, tmp_path):
    refused("ppo.upates=3")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_was_refused_can_be_mended_and_checked_again_with_the_same_output(refused):
    refused("rollout.max_new_tokens=60")
    code, error = refused("rollout.max_new_tokens=60")
    assert code == 3
    assert "is not empty" not in error


# And what is right does train: the recipe of these tests is not what they refuse.


def test_the_recipe_of_these_tests_trains_and_says_where_everything_is(rlframe, recipe, tmp_path):
    output = tmp_path / "run"
    ended = rlframe("train", recipe, "--output", output)
    assert ended.code == 0, ended.err
    assert ended.out.endswith(f"Everything is in {output}\n")
    assert (output / "sft" / "model.safetensors").is_file()
    assert (output / "ppo" / "policy" / "model.safetensors").is_file()
    assert json.loads((output / "manifest.json").read_text())["status"] == "finished"


def test_a_reward_that_compares_the_samples_of_a_prompt_trains(rlframe, recipe, tmp_path):
    ended = rlframe(
        "train",
        recipe,
        "rollout.samples_per_prompt=2",
        "rewards.better={type: preference_difference, against: others, "
        "reward: {type: length, target_tokens: 4}}",
        "--output",
        tmp_path / "run",
    )
    assert ended.code == 0, ended.err
