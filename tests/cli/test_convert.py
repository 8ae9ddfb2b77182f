"""`rlframe convert`: the recipe on stdout or in a file, the report on stderr, how each mistake ends."""

import pytest

CONFIG = "from trl import PPOConfig\nc = PPOConfig({})\n"
COMMAND = (
    "python -m openrlhf.cli.train_ppo_ray --pretrain a/b --reward_pretrain a/r --prompt_data a/p"
)


@pytest.fixture
def file(tmp_path):
    """A function that writes a file and returns its path."""

    def write(text, name="run.txt"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_the_recipe_goes_to_stdout_and_the_report_to_stderr(rlframe, file):
    ended = rlframe("convert", file(COMMAND))
    assert ended.code == 0
    assert ended.out.startswith("# Converted from OpenRLHF")
    assert "version: 1" in ended.out
    assert "line 1: --pretrain a/b" in ended.err
    assert "To be filled in" in ended.err
    assert "ppo.updates" in ended.err


def test_a_recipe_in_a_file_is_valid_and_never_overwritten(rlframe, file, tmp_path):
    target, source = tmp_path / "recipe.yaml", file(COMMAND)
    ended = rlframe("convert", source, "--output", target)
    assert (ended.code, rlframe("show", target, "--resolved").code) == (0, 0)
    assert f"rlframe validate {target}" in ended.out
    before = target.read_text()
    ended = rlframe("convert", source, "--output", target)
    assert ended.code == 5
    assert "exists already" in ended.err
    assert target.read_text() == before


def test_the_number_of_processes_can_be_given(rlframe, file):
    path = file(CONFIG.format("per_device_train_batch_size=4, total_episodes=160"))
    assert "prompts_per_update: 32" in rlframe("convert", path, "--processes", 8).out


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", [], "is empty"),
        (" \n\n", [], "is empty"),
        ("hello\n", [], "--from trl|openrlhf|llamafactory"),
        ("import trl\nx = trl.DPOConfig()\n", [], "It calls DPOConfig, and only PPO is converted"),
        ("from trl import PPOConfig\n", [], "no call of PPOConfig"),
        (CONFIG.format("") * 2, [], "several times, on lines 2, 4"),
        ("from trl import PPOConfig\nPPOConfig(\n", [], "not valid Python"),
        (f"{COMMAND}\n{COMMAND}\n", [], "on lines 1, 2"),
        (COMMAND.replace("train_ppo_ray", "train_dpo"), [], "runs openrlhf.cli.train_dpo"),
        (f"{COMMAND} --save_path 'x\n", [], "a quote is not closed"),
        ("stage: dpo\nmodel_name_or_path: a\n", [], "it has `stage: dpo`, and only `stage: ppo`"),
        ("model_name_or_path: a\n", [], "it has no `stage:`"),
        ("stage: ppo\n bad: [\n", [], "not valid YAML"),
        ("- a\n", ["--from", "llamafactory"], "no mapping of keys"),
        ("echo\n", ["--from", "openrlhf"], "no command in it runs openrlhf.cli.train_ppo"),
        ("echo\n", ["--from", "trl"], "no command in it runs a PPO script of TRL"),
        (f"{COMMAND} --rollout_batch_size many", [], "rollout_batch_size is a number"),
        (f"{COMMAND} --rollout_batch_size 0", [], "a whole number from 1"),
        (f"{COMMAND} --advantage_estimator gea", [], "OpenRLHF has gae"),
        (f"{COMMAND} --eps_clip_low_high 0.2", [], "takes two numbers"),
        (f"{COMMAND},c/d --prompt_data_probs a,b", [], "this value means nothing here"),
    ],
)
def test_what_cannot_be_converted_ends_with_3_and_says_why(rlframe, file, text, options, words):
    path = file(text)
    ended = rlframe("convert", path, *options)
    assert (ended.code, ended.out) == (3, "")
    assert words in ended.err
    assert str(path) in ended.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CONFIG.format("lerning_rate=1e-6"), "Did you mean 'learning_rate'?"),
        (CONFIG.format("learning_rate=args.lr"), "set ppo.learning_rate in the recipe"),
        (CONFIG.format("**settings"), "**settings"),
        (f"{COMMAND} --my_own_flag 3", "there is no such option"),
        (f"{COMMAND} --kl_estimater k3", "Did you mean 'kl_estimator'?"),
        (
            "stage: ppo\nmodel_name_or_path: a\nreward_model: b\nppo_epoch: 3\n",
            "Did you mean 'ppo_epochs'?",
        ),
        (f"{COMMAND} --advantage_estimator rloo", "the recipe is refused as it is"),
    ],
)
def test_what_is_not_understood_or_refused_is_reported_beside_the_recipe(
    rlframe, file, text, words
):
    path = file(text)
    ended = rlframe("convert", path)
    assert ended.code == 3
    assert "version: 1" in ended.out
    assert words in ended.err


def test_a_file_that_is_not_there_or_no_text(rlframe, file, tmp_path):
    assert rlframe("convert", tmp_path / "none.sh").code == 5
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    ended = rlframe("convert", tmp_path / "bytes")
    assert ended.code == 3
    assert "UTF-8" in ended.err
    assert rlframe("convert", file(COMMAND), "--from", "verl").code == 2
